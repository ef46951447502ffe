"""A whole model for use: text in, audio out.

Shapes: tokens int64 [B, K, T]; audio float [B, channels, samples].
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from magnet_train.audio.chunked import decode_loop, encode_audio, samples_per_frame
from magnet_train.checkpoints.adapter import merge_adapter, weights_sha256
from magnet_train.checkpoints.audiocraft.read import CODEC_FILE, THEIR_STORE
from magnet_train.checkpoints.audiocraft.write import save_audiocraft
from magnet_train.checkpoints.bundle import ModelBundle, as_it_came, load_weights, without_path
from magnet_train.checkpoints.export import save_export
from magnet_train.checkpoints.licence import UNSPECIFIED
from magnet_train.checkpoints.load import read_model, read_stored
from magnet_train.codecs import QUICKSTART, Codec, load_codec, packaged_codec
from magnet_train.decoding import (
    DecodingConfig,
    LogitsAtFrames,
    Progress,
    Rescorer,
    clip_generators,
    generate_tokens,
)
from magnet_train.decoding.editing import ROUNDING, plan_edit, splice
from magnet_train.decoding.generate import given_tokens
from magnet_train.decoding.looping import close_loop
from magnet_train.decoding.sliding_window import continue_tokens
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.pipeline.inputs import as_audio, as_captions, as_mask, as_region, as_tokens, as_whole_number
from magnet_train.storage.hub import upload_folder
from magnet_train.text import TextEncoder, text_encoder_from_spec

if TYPE_CHECKING:
    from magnet_train.pipeline.musicgen import RescoringModel

_FORMATS = {"magnet": save_export, "audiocraft": save_audiocraft}
LONGEST_CLIP = 86_400.0  # s, a day: more would fit into neither memory nor a WAV file


class Magnet:
    """Model, text encoder and codec together.

    Args:
        stored: Settings and weights, from `from_pretrained` say.
        device: Where to compute.

    Raises:
        UserError: The weights do not fit the settings.
    """

    def __init__(self, stored: ModelBundle, device: str = "cpu") -> None:
        self._stored = stored
        self.device = _device(device)
        self.decoding: DecodingConfig = stored.decoding
        self.segment_duration = stored.segment_duration
        self.lm = _build_lm(stored)
        self._text: TextEncoder | None = None if _text_is_elsewhere(stored) else self._load_text()
        self._codec: Codec | None = None
        self._named: set[str] = set()  # unknown words of captions that were warned of
        load_weights(self._parts(), stored.weights, stored.source)
        self.lm.eval().to(self.device)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, device: str = "cpu", raw: bool = False) -> Self:
        """Load a model.

        Args:
            path_or_hub_id: Folder of our export, a checkpoint that `fit` saved, a model of audiocraft (folder,
                `state_dict.bin` or training checkpoint), or a hub id that holds one of these.
            device: Where to compute.
            raw: For a checkpoint of ours, take the weights without their moving average.

        Raises:
            UserError: There is nothing readable.
        """
        return cls(read_model(path_or_hub_id, raw), device)

    @property
    def text(self) -> TextEncoder:
        """The text encoder; a frozen one, whose weights are not the model's, is loaded when first used.

        Raises:
            UserError: It cannot be found, or is not as wide as the model expects.
        """
        if self._text is None:
            self._text = self._load_text()
        return self._text

    def _load_text(self) -> TextEncoder:
        text = text_encoder_from_spec(self._stored.text, self._stored.text_folder)
        needed = self._stored.lm.get("text_dim")
        if text.dim != needed:
            raise UserError(
                f"{self._stored.source} expects text states of width {needed}, but text encoder {text.id} gives "
                f"{text.dim}; name the encoder that it was trained with."
            )
        return text.eval().to(self.device)

    @property
    def codec(self) -> Codec:
        """The codec, loaded when first used.

        Raises:
            UserError: It cannot be found, is not the one whose tokens the model speaks, or is in audiocraft's
                own format.
        """
        if self._codec is None:
            folder = self._stored.codec_folder
            if folder is not None and (folder / CODEC_FILE).is_file():
                raise UserError(
                    f"{self._stored.source} has a codec in audiocraft's own format ({folder / CODEC_FILE}), which "
                    "this version cannot decode; take its tokens (generate_tokens), or decode them with audiocraft."
                )
            if self._stored.codec.id.startswith(THEIR_STORE) and folder is None:
                raise UserError(
                    f"{self._stored.source} names codec {self._stored.codec.id}, which lies in a store of audiocraft's "
                    f"authors; put the release's {CODEC_FILE} beside the weights, or take the tokens alone."
                )
            name = str(self._stored.codec_folder or self._stored.codec.id)
            codec = load_codec(name, device=str(self.device))
            self._stored.codec.require_same_tokens(codec.info, "the model", name)
            self._codec = codec
        return self._codec

    def load_adapter(self, path: str | Path, strength: float = 1.0) -> None:
        """Add a LoRA adapter to the model; several add up.

        Args:
            path: The checkpoint of a LoRA fine-tune.
            strength: How much of it: 0 nothing, 1 as trained.

        Raises:
            UserError: There is no adapter, or it is for a model of another shape.
        """
        adapter = read_stored(path)
        if not adapter.adapter:
            raise UserError(f"{path} holds no adapter but a whole model; load it as the model.")
        own = {f"lm.{name}": tensor for name, tensor in self.lm.state_dict().items()}
        if weights_sha256(self._stored.weights) != adapter.base.get("weights_sha256"):
            warnings.warn(
                f"adapter {path} was trained on {adapter.base.get('source')}, and {self._stored.source} has other "
                "weights; it may do something else here.",
                stacklevel=2,
            )
        merged = merge_adapter(replace(self._stored, weights=own), adapter, strength)
        self.lm.load_state_dict({name.removeprefix("lm."): tensor for name, tensor in merged.weights.items()})
        self._stored = replace(
            self._stored,
            training={**adapter.training, "adapter strength": strength},
            data=adapter.data,
            base=adapter.base,
            licence=self.licence if adapter.licence == UNSPECIFIED else adapter.licence,
        )

    @property
    def licence(self) -> str:
        """What the model may be used for: an SPDX id or a word."""
        return self._stored.licence

    @property
    def training(self) -> dict[str, Any]:
        """Steps and the like, as far as the source says."""
        return dict(self._stored.training)

    def weights_sha256(self) -> str:
        """Hash the weights as they are now; a frozen text encoder has none of the model's."""
        return weights_sha256(self._parts().state_dict())

    @property
    def sample_rate(self) -> int:
        """Samples per second of what `generate` returns (Hz)."""
        return self._stored.codec.sample_rate

    def generate(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        loop: bool = False,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int = 0,
    ) -> Tensor:
        """Make audio.

        A clip depends on the model, its caption, the settings, `seed` and its index alone. On a CPU the clips of a
        batch are made one by one, so that each is the same alone, bit for bit; on a GPU its noise is the same, and
        the rest within rounding.

        Args:
            texts: B captions; None or "" makes a clip without one.
            seconds: Length; the model's segment_duration when None. Longer clips are made window by window, each
                in sight of about half of the one before, from a beat on.
            seed: Makes the result repeatable on the same kind of device, 0..2^63-1.
            decoding: Sampler settings; the model's own when None.
            prompt: Audio [channels, samples] or [B, channels, samples] at `sample_rate` to continue; a tensor or
                numpy array.
            loop: Make clips that can be repeated: a straight clip whose ends, one span each, are made again in
                sight of each other.
            progress: Called as progress(steps done, steps in all).
            rescorer: A second model that helps to choose what is made again, `rescoring.MusicgenRescorer` say;
                with weight `decoding.rescorer_weight`, on the same device.
            first_index: Of the first clip; those of the others follow. Clip 7 of a batch is made alone with its
                caption, the same seed and 7.

        Returns:
            float32 [B, channels, samples] on the CPU.

        Raises:
            UserError: A loop in parity mode, a prompt as long as the clip or longer, settings that
                do not fit, or a rescorer of other tokens.
        """
        texts, tokens, seconds = as_captions(texts), None, self._length(seconds)
        if prompt is not None:
            tokens = self._encode_prompt(prompt, len(texts), seconds)
        tokens = self._clips_of_tokens(
            texts,
            seconds,
            seed,
            decoding,
            prompt=tokens,
            loop=loop,
            rescorer=rescorer,
            progress=progress,
            first_index=first_index,
        )
        return (decode_loop(self.codec, tokens) if loop else self.codec.decode(tokens)).cpu()

    def edit(
        self,
        audio: Tensor,
        region: tuple[float, float],
        texts: Sequence[str | None],
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int = 0,
    ) -> Tensor:
        """Make a part of a recording anew; outside of it and of two fades of 10 ms no sample changes.

        Args:
            audio: [channels, samples] at `sample_rate`, of any length; a tensor or numpy array. The model sees the
                region with as much around it as fits into its segment_duration.
            region: Start and end of that part, in seconds.
            texts: B captions, each of which gives a version; None or "" for one without.
            seed: As in `generate`, and so are `decoding` and `progress`.
            decoding: Sampler settings.
            progress: Called after each step.
            rescorer: As in `generate`.
            first_index: Likewise.

        Returns:
            float32 [B, channels, samples] on the CPU.

        Raises:
            UserError: The region is no part of the recording or too long, or settings do not fit.
        """
        codec, texts = self.codec, as_captions(texts)
        audio = as_audio(audio, codec.channels, "recording", 2)
        hop = samples_per_frame(codec)
        edit = plan_edit(
            as_region(region), audio.shape[-1] / codec.sample_rate, codec.frame_rate, self.segment_duration
        )
        clip = audio[None, :, edit.clip_first * hop : edit.clip_end * hop]
        tokens = self._clips_of_tokens(
            texts,
            min(self.segment_duration, (edit.clip_end - edit.clip_first) / codec.frame_rate),
            seed,
            decoding,
            prompt=codec.encode(clip).expand(len(texts), -1, -1),
            keep=edit.keep.expand(len(texts), -1),
            rescorer=rescorer,
            progress=progress,
            first_index=first_index,
        )
        return splice(audio.cpu(), codec.decode(tokens).cpu(), edit, hop, codec.sample_rate)

    def generate_tokens(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        keep: Tensor | None = None,
        loop: bool = False,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int = 0,
    ) -> Tensor:
        """Make tokens; as `generate`, but `prompt` is int64 [B, K, P] and so is the result, [B, K, T].

        `keep`, bool [B, P] or [B, K, P], says which tokens of the prompt stay; all of them when None. In parity mode
        the batch is made as the reference makes it, whose released models see the padding behind a shorter caption.
        """
        parity = getattr(decoding or self.decoding, "parity", False)
        return self._clips_of_tokens(
            texts,
            seconds,
            seed,
            decoding,
            prompt,
            keep,
            loop,
            progress,
            rescorer,
            first_index,
            together=parity,
        )

    def _clips_of_tokens(
        self,
        texts: Sequence[str | None],
        seconds: float | None,
        seed: int | None,
        decoding: DecodingConfig | None,
        prompt: Tensor | None = None,
        keep: Tensor | None = None,
        loop: bool = False,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int = 0,
        together: bool = False,
    ) -> Tensor:
        """Check the arguments of `generate_tokens` and make the clips: `together` as the reference does, else each as
        if alone."""
        seconds, texts = self._length(seconds), as_captions(texts)
        seed = None if seed is None else as_whole_number(seed, "seed")
        first_index = as_whole_number(first_index, "first_index")
        if not isinstance(decoding := decoding or self.decoding, DecodingConfig):
            raise UserError(f"decoding is {decoding!r}; give a DecodingConfig.")
        prompt = None if prompt is None else as_tokens(prompt, len(texts), self.lm.n_q)
        keep = None if keep is None else as_mask(keep)
        stays = 0 if prompt is None or not (keep is None or bool(keep.all())) else prompt.shape[-1]
        if stays == self._stored.codec.frames(seconds):
            raise UserError("the prompt is as long as the clip, which leaves nothing to make; shorten it.")
        self._warn_of_unknown_words(texts)
        settings = (seconds, seed, decoding)
        if together or self.device.type != "cpu":
            return self._make_tokens(
                texts, *settings, prompt, keep, loop, progress, rescorer, first_index, together
            )
        # What a row of a matrix product is, to the last bit, depends on how many there are: so one by one. It costs
        # a model of 128 dimensions twice the time; larger models were not measured.
        steps = _Rows(progress, len(texts))
        clips = [
            self._make_tokens(
                [text],
                *settings,
                None if prompt is None else prompt[row : row + 1],
                None if keep is None else keep[row : row + 1],
                loop,
                steps.of(row),
                rescorer,
                first_index + row,
            )
            for row, text in enumerate(texts)
        ]
        return torch.cat(clips)

    def _make_tokens(
        self,
        texts: Sequence[str | None],
        seconds: float,
        seed: int | None,
        decoding: DecodingConfig,
        prompt: Tensor | None,
        keep: Tensor | None,
        loop: bool,
        progress: Progress | None,
        rescorer: RescoringModel | None,
        first_index: int,
        padding: bool = False,
    ) -> Tensor:
        """Make the tokens of a batch at once; `padding` lets a model see that of its captions if it was trained so."""
        indices = range(first_index, first_index + len(texts))
        generator = None if seed is None else clip_generators(seed, indices, self.device)
        shape = (len(texts), self.lm.n_q, self._stored.codec.frames(seconds))
        window = self._stored.codec.frames(self.segment_duration)
        if loop and decoding.parity:
            raise UserError(
                "parity mode makes what the reference makes, which has no loops; leave one of them off."
            )
        if shape[2] > window and (decoding.parity or keep is not None):
            what = "a clip in parity mode" if decoding.parity else "a clip with `keep`"
            raise UserError(
                f"{what} has to be made in one go, which is at most the {self.segment_duration:g} s of the model's "
                f"clips, not {seconds:g} s; ask for less."
            )
        logits_fn = self._logits_fn(texts, padding) if padding else self.logits_fn(texts)
        judge = self._rescorer(rescorer, texts, decoding)

        def fill(prompt: Tensor | None, keep: Tensor | None, progress: Progress | None) -> Tensor:
            return generate_tokens(
                logits_fn,
                (*shape[:2], min(shape[2], window)),
                decoding,
                card=self.lm.card,
                span_len=self.lm.span_len,
                prompt=prompt,
                keep=keep,
                rescorer=judge,
                generator=generator,
                progress=progress,
                device=self.device,
            )

        if shape[2] <= window:
            tokens = fill(prompt, keep, progress)
        else:
            given, _ = given_tokens(prompt, None, shape, self.lm.card, self.device)
            length = 0 if prompt is None else prompt.shape[-1]
            tokens = continue_tokens(given, length, window, fill, self._features, progress)
        if not loop:
            return tokens
        _, stays = given_tokens(prompt, keep, shape, self.lm.card, self.device)
        return close_loop(tokens, stays, window, 2 * self.lm.span_len, fill, self._features)

    def _features(self, tokens: Tensor) -> Tensor:
        """Return the sum of the codebooks' embeddings, float [B, D, T]: frames of similar sound lie near each other."""
        with torch.no_grad():
            return self.lm.embed(tokens).float().transpose(1, 2)

    def logits_fn(self, texts: Sequence[str | None]) -> LogitsAtFrames:
        """Return what the decoder asks for logits: the model, told what B captions say, each as if alone.

        Args:
            texts: As in `generate`.
        """
        return self._logits_fn(texts, padding=False)

    def _logits_fn(self, texts: Sequence[str | None], padding: bool) -> LogitsAtFrames:
        with torch.no_grad():
            hidden, mask = self.text(texts)
        told = (hidden, mask, not padding) if bool(mask.any()) else (None,)
        return GuidedLogits(self.lm, *told)

    def _rescorer(
        self, model: RescoringModel | None, texts: Sequence[str | None], decoding: DecodingConfig
    ) -> Rescorer | None:
        """Return what judges clips about these texts, if there is such a model and it has a say."""
        if model is None:
            return None
        model.require_same_tokens(self._stored.codec)
        if decoding.rescorer_weight == 0:
            return None
        return model.for_texts(texts)

    def unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List the words of captions that the text encoder does not know, if its vocabulary is one of whole words."""
        tokenizer = getattr(self.text, "tokenizer", None)
        return [] if tokenizer is None else tokenizer.unknown_words(texts)

    def newly_unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List those that this has not listed before: what makes clips warns of each word once."""
        new = [word for word in self.unknown_words(texts) if word not in self._named]
        self._named.update(new)
        return new

    def _warn_of_unknown_words(self, texts: Sequence[str | None]) -> None:
        if new := self.newly_unknown_words(texts):
            warnings.warn(f"{unknown_words_sentence(new)}.", stacklevel=4)

    def _length(self, seconds: float | None) -> float:
        """Return the length of a clip in seconds, the model's own if none is asked for."""
        try:
            seconds = self.segment_duration if seconds is None else float(seconds)
        except (TypeError, ValueError) as error:
            raise UserError(f"seconds is {seconds!r}; give a number of seconds.") from error
        if not 0 < seconds <= LONGEST_CLIP:
            raise UserError(
                f"{seconds:g} s is no length of a clip; ask for more than 0 and at most {LONGEST_CLIP:,.0f} s."
            )
        return seconds

    def _encode_prompt(self, prompt: Tensor, clips: int, seconds: float) -> Tensor:
        """Turn audio [channels, samples] or [B, channels, samples] into tokens int64 [B, K, P]."""
        codec = self._stored.codec
        prompt = as_audio(prompt, codec.channels, "prompt", 3)
        prompt = prompt if prompt.dim() == 3 else prompt[None]
        if prompt.shape[0] not in (1, clips):
            raise UserError(
                f"the prompt's shape {list(prompt.shape)} should be [{clips}, {codec.channels}, samples], or the same "
                "without the number of clips."
            )
        length = prompt.shape[-1] / codec.sample_rate
        if length < 1 / codec.frame_rate:
            raise UserError(
                f"the prompt of {length:g} s is shorter than one frame of {1 / codec.frame_rate:g} s."
            )
        # A frame that is begun counts, see `Codec.encode`.
        if math.ceil(length * codec.frame_rate - ROUNDING) >= codec.frames(seconds):
            raise UserError(
                f"the prompt lasts {length:g} s and the clip {seconds:g} s, which leaves nothing to make; shorten the "
                "prompt or ask for more seconds."
            )
        tokens = torch.stack([encode_audio(self.codec, clip) for clip in prompt])
        return tokens.expand(clips, -1, -1)

    def _parts(self) -> nn.ModuleDict:
        """Return what the model's weights are for: a frozen text encoder brings its own."""
        parts: dict[str, nn.Module] = {"lm": self.lm}
        return nn.ModuleDict(parts if self._text is None else {**parts, "text": self._text})

    def save_pretrained(
        self,
        folder: str | Path,
        licence: str | None = None,
        format: Literal["magnet", "audiocraft"] = "magnet",
    ) -> None:
        """Write a folder that `from_pretrained` reads, whole or not at all.

        Args:
            folder: Target; must not exist or be empty.
            licence: SPDX id or a word, for the model card; that of the model it was made from when None.
            format: "magnet": safetensors, self-contained unless codec or text encoder are on the hub;
                "audiocraft": what `MAGNeT.get_pretrained(folder)` of the reference reads.

        Raises:
            UserError: The target holds something or cannot be written, or audiocraft could not read the model.
        """
        write = _FORMATS.get(format)
        if write is None:
            raise UserError(f"format {format!r} is not known; choose {' or '.join(_FORMATS)}.")
        with tempfile.TemporaryDirectory() as scratch:
            write(self._to_store(Path(scratch), licence), Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        licence: str | None = None,
        format: Literal["magnet", "audiocraft"] = "magnet",
        private: bool = True,
        dry_run: bool = False,
    ) -> list[str]:
        """Upload what `save_pretrained` writes, as one commit.

        Args:
            repo_id: "you/name"; made if it does not exist. Log in before with `hf auth login`.
            licence: As in `save_pretrained`.
            format: Likewise.
            private: Whether a repository made here can be seen by you alone.
            dry_run: Write and check everything, upload nothing.

        Returns:
            The files' names.

        Raises:
            UserError: The name cannot be one, or the hub refuses or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, licence, format)
            return upload_folder(folder, repo_id, private, dry_run)

    def _to_store(self, scratch: Path, licence: str | None) -> ModelBundle:
        """Collect weights as they are now, and local copies of what the model needs."""
        stored = self._stored
        text_folder, name = stored.text_folder, stored.text.get("name")
        local = name is not None and name != QUICKSTART and Path(name).is_dir()
        if text_folder is None and name and (local or (self._text is not None and self._text.trainable)):
            text_folder = scratch
            self.text.save(text_folder)
        codec_folder, codec = stored.codec_folder, Path(stored.codec.id)
        if codec_folder is None and stored.codec.id == QUICKSTART:
            codec_folder = packaged_codec()
        elif codec_folder is None and not stored.codec.id.startswith(THEIR_STORE) and _is_local(codec):
            _ = self.codec  # refuses one that is gone or has changed since it made the tokens
            codec_folder = codec
        return replace(
            stored,
            weights={
                tensor_name: as_it_came(tensor, stored.weights.get(tensor_name))
                for tensor_name, tensor in self._parts().state_dict().items()
            },
            decoding=self.decoding,
            codec_folder=codec_folder,
            text_folder=text_folder,
            licence=licence or stored.licence,
            base=without_path(stored.base),
        )


def unknown_words_sentence(words: Sequence[str]) -> str:
    """Say that a vocabulary lacks words, without a full stop."""
    listed = ", ".join(repr(word) for word in words[:20]) + (", ..." if len(words) > 20 else "")
    return f"the model's vocabulary lacks {listed}: the model reads each as the same unknown word"


class _Rows:
    """Counts the steps of clips that are made one after the other; how many a clip takes may differ."""

    def __init__(self, progress: Progress | None, rows: int) -> None:
        self.progress, self.rows = progress, rows
        self.taken = 0

    def of(self, row: int) -> Progress | None:
        """Return what clip number `row` reports to."""
        progress, before = self.progress, self.taken
        if progress is None:
            return None

        def report(done: int, total: int) -> None:
            self.taken = before + done
            progress(self.taken, before + total * (self.rows - row))

        return report


def _is_local(path: Path) -> bool:
    return path.is_dir() or path.is_absolute()


def _text_is_elsewhere(stored: ModelBundle) -> bool:
    """Tell a frozen T5, which the weights do not hold."""
    return stored.text.get("kind") == "t5" and stored.text.get("trainable") is False


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises the latter when it was built without CUDA
        raise UserError(
            f"device {name} is not there ({str(error).splitlines()[0][:80]}); try cpu."
        ) from error


def _build_lm(stored: ModelBundle) -> MagnetTransformer:
    try:
        lm = MagnetTransformer(**stored.lm)
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(
            f"{stored.source} describes no model that can be built ({error}); export it again."
        ) from error
    codec = stored.codec
    if (lm.n_q, lm.card) != (codec.n_q, codec.card):
        raise UserError(
            f"{stored.source} has a model of {lm.n_q} codebooks of {lm.card} entries but a codec of {codec.n_q} of "
            f"{codec.card}; export it again."
        )
    return lm
