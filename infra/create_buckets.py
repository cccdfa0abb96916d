"""Make the buckets that the other services expect: `python -m infra.create_buckets NAME ...`.

Endpoint and keys come from the standard AWS variables. A bucket that exists is left as it is.
"""

from __future__ import annotations

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


def create_buckets(names: list[str]) -> list[str]:
    """Create each bucket that does not exist yet; returns the names that were made.

    Raises:
        ClientError: the store refused (wrong keys, a name that is not allowed).
        BotoCoreError: the store did not answer after ten tries.
    """
    client = boto3.client("s3", config=Config(retries={"max_attempts": 10, "mode": "standard"}))
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    made = [name for name in names if name not in existing]
    for name in made:
        client.create_bucket(Bucket=name)
    return made


def main(names: list[str]) -> int:
    """Entry point; 2 for no names, 1 when the store refuses or is silent."""
    if not names:
        sys.stderr.write("usage: python -m infra.create_buckets NAME [NAME ...]\n")
        return 2
    try:
        made = create_buckets(names)
    except (BotoCoreError, ClientError) as error:
        sys.stderr.write(f"buckets {', '.join(names)} could not be made: {error}\n")
        return 1
    sys.stdout.write(f"made: {', '.join(made) or 'none, all exist'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
