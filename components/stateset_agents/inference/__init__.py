"""Token ids in, token ids and log-probs out: the engines, chat templates and loading."""
