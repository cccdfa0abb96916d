"""A side that counts its rounds; it starts at once, because it imports next to nothing."""

from __future__ import annotations

from benchmarks.processes import Requests


def main() -> None:
    requests = Requests()
    requests.answer({})
    rounds = 0
    while requests.wait() is not None:
        rounds += 1
        requests.answer({"round": rounds, "number": requests.settings()["number"]})


if __name__ == "__main__":
    main()
