"""Token ids as they are sampled, to text as it can be shown.

Owns incremental decoding: what is given out never ends within a character, and all pieces together
are what `ChatTokenizer.decode` makes of all the ids, but for the part of a character in which ids
that were cut off may end. (Tokenizers with a fallback to bytes make
nothing of a whole run of bytes once one of them is wrong; what was shown of such a run stays.) It
does not know engines.
"""

from __future__ import annotations

from stateset_agents.inference.chat_template import UNFINISHED_CHARACTER, ChatTokenizer


class TextStream:
    """Decodes one answer, token by token.

    A token may hold a part of a character only, and what it decodes to may depend on the token
    before it (a leading space that is dropped at the very beginning). So a few tokens are decoded
    twice: those of the piece before as well, and what they gave is taken off.

    Args:
        tokenizer: the model's.
        shown_ids: special tokens that are part of the text, see `ChatTokenizer.decode`.
    """

    def __init__(self, tokenizer: ChatTokenizer, shown_ids: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._shown_ids = shown_ids
        self._window: list[int] = []
        self._given = 0  # how many tokens of the window have been given out

    def add(self, token_id: int) -> str:
        """The text that is complete with this token: "" within a character, or for a stop token."""
        if token_id in self._tokenizer.stop_token_ids:
            return ""
        self._window.append(token_id)
        before = self._tokenizer.decode_as_is(self._window[: self._given], self._shown_ids)
        text = self._tokenizer.decode_as_is(self._window, self._shown_ids)
        if text.endswith(UNFINISHED_CHARACTER) or len(text) <= len(before):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return text[len(before) :]
