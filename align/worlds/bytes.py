"""A tiny random model that reads any text: for trying real preference data without a download.

The tokenizer is byte-level, so every string has tokens and gives itself back. Some hundred merges,
learned from the common English words below, make English about half as long as its bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from align.runs.cache import cached_folder, made_by
from align.worlds import chat
from align.worlds.base import World

# Written out so that the merges need no file: words that make up much of an English conversation,
# the commonest first.
COMMON_WORDS = """
the to you and a of I is in that it for do are your not have can be with on this if they
what or would how my but people was like about as me don't know an by so at just get want
some will it's from think them there I'm when he one out more make good their up all we
could has who his something way time any should because other no help than use someone
really why that's she most go very find need him her our us then which were been had did
does only even also much many well back over after before into where here these those such
being both each through between another first last never always take give tell say said see
look come work keep let ask try put call feel mean talk start stop might must may sure sorry
maybe please thank thanks yes okay right wrong bad best better great new old long little big
high small same different own able few every anything anyone things thing person man woman
kids child family friend house home school money water food place world country state life
years year day days week night hand body head car dog book name kind part point problem
question answer example information reason important possible illegal legal dangerous safe
hurt harm police law drugs against without around under while until though again still too
off down once during together going doing getting making using saying looking talking
thinking asking helping trying being having wanted used called asked tried looked worked
happened different usually actually probably understand remember believe consider suggest
recommend happen become seem leave
"""
MERGES = 512


@dataclass(frozen=True)
class BytesSettings:
    """What the model is made from.

    Attributes:
        layers: of the Llama.
        width: hidden size; the feed-forward layer is three times as wide.
        heads: attention heads.
        max_length: positions the model takes.
        seed: of the weights.
    """

    layers: int = 2
    width: int = 64
    heads: int = 2
    max_length: int = 2048
    seed: int = 0


def bytes_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the 256 bytes and MERGES merges, the turn markers as special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        # Earlier lines count more often, which decides the merges that fit.
        [
            " " + line
            for rank, line in enumerate(reversed(COMMON_WORDS.strip().splitlines()), start=1)
            for _ in range(rank)
        ],
        trainers.BpeTrainer(
            vocab_size=len(chat.SPECIAL_TOKENS) + len(alphabet) + MERGES,
            special_tokens=list(chat.SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    backend.post_processor = TemplateProcessing(
        single=f"{chat.BOS} $A",
        pair=f"{chat.BOS} $A $B",
        special_tokens=[(chat.BOS, backend.token_to_id(chat.BOS))],
    )
    return chat.chat_tokenizer(backend, max_length)


class Bytes(World):
    """The world of any text; it has a model and no judge."""

    name = "bytes"

    def __init__(self, settings: BytesSettings | None = None):
        self.settings = settings or BytesSettings()

    def base_model(self) -> Path:
        """The folder of the random model and its tokenizer, written on the first call."""
        parts = {"settings": asdict(self.settings), **made_by(__file__, chat.__file__)}
        return cached_folder(f"worlds/{self.name}", parts, self._build)

    def _build(self, folder: Path) -> None:
        """Save the model and its tokenizer as an ordinary transformers folder."""
        settings = self.settings
        tokenizer = bytes_tokenizer(settings.max_length)
        model = chat.tiny_llama(
            tokenizer,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
            seed=settings.seed,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
