-- MLflow's database is made by the image (POSTGRES_DB); these are the other two.
CREATE DATABASE prefect;
CREATE DATABASE optuna;
