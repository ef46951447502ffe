"""A whole model for use: text in, audio out.

Shapes: B clips, K codebooks, T frames, P frames of a prompt; tokens int64 [B, K, T], audio float [B, channels, samples].
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from magnet_train.audio.resampling import stretch_loop
from magnet_train.checkpoints.adapter import weights_sha256
from magnet_train.checkpoints.audiocraft.write import save_audiocraft
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.checkpoints.export import save_export
from magnet_train.checkpoints.load import read_model
from magnet_train.codecs import Codec
from magnet_train.codecs.chunked import decode_loop, samples_per_frame
from magnet_train.decoding import DecodingConfig, LogitsAtFrames, Progress, StepProfile
from magnet_train.decoding.editing import plan_edit, splice
from magnet_train.decoding.step_profile import Quality
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.pipeline.inputs import as_audio, as_captions, as_loop_seconds, as_region
from magnet_train.pipeline.parts import ModelParts
from magnet_train.pipeline.passes import chosen_passes, measure_passes
from magnet_train.pipeline.request import ClipRequest, encode_prompt, guided_logits, make_tokens
from magnet_train.storage.hub import upload_folder
from magnet_train.text import TextEncoder
from magnet_train.tokens import CodecInfo

if TYPE_CHECKING:
    from magnet_train.pipeline.musicgen import RescoringModel

_FORMATS = {"magnet": save_export, "audiocraft": save_audiocraft}
Format = Literal["magnet", "audiocraft"]


class Magnet:
    """Model, text encoder and codec together.

    Args:
        bundle: Settings and weights; `from_pretrained` reads them.
        device: Where to compute.
        dtype: As in `from_pretrained`.

    Raises:
        UserError: The weights do not fit the settings.
    """

    def __init__(
        self, bundle: ModelBundle, device: str = "cpu", dtype: str | torch.dtype = "float32"
    ) -> None:
        self._parts = ModelParts(bundle, device, str(dtype).removeprefix("torch."))
        self.decoding: DecodingConfig = bundle.decoding.for_codec(self.lm.n_q, self.lm.streams)
        self.segment_duration = bundle.segment_duration
        self._warned: set[str] = set()  # unknown words of captions

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str = "cpu",
        raw: bool = False,
        dtype: str | torch.dtype = "float32",
    ) -> Self:
        """Load a model.

        Args:
            path_or_hub_id: Folder of our export, a checkpoint that `fit` saved, a model of audiocraft (folder,
                `state_dict.bin` or training checkpoint), or a hub id that holds one of these.
            device: Where to compute.
            raw: Take the weights of our checkpoint as trained instead of their moving average.
            dtype: What the transformer computes in: float32, bfloat16, float16, or "auto", which is bfloat16 where the
                device multiplies it faster. Logits and sampling, text encoder and codec stay in float32.

        Raises:
            UserError: The model is missing or cannot be read, or the device cannot compute in `dtype`.
        """
        return cls(read_model(path_or_hub_id, raw), device, dtype)

    @property
    def lm(self) -> MagnetTransformer:
        """The transformer, a plain `nn.Module`."""
        return self._parts.lm

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._parts.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self._parts.dtype

    @property
    def text(self) -> TextEncoder:
        """The text encoder; raises `UserError` if it cannot be found or its width does not fit the model."""
        return self._parts.text

    @property
    def codec(self) -> Codec:
        """The codec, loaded when first used; raises `UserError` if it cannot be found or has other tokens."""
        return self._parts.codec

    @property
    def codec_info(self) -> CodecInfo:
        """The codec of the tokens, without loading it."""
        return self._parts.bundle.codec

    @property
    def sample_rate(self) -> int:
        """Samples per second of what `generate` returns (Hz)."""
        return self._parts.bundle.codec.sample_rate

    @property
    def licence(self) -> str:
        """Licence of the model: an SPDX id or a word."""
        return self._parts.bundle.licence

    @property
    def training(self) -> dict[str, Any]:
        """Steps and other facts of the training, as far as the source records them."""
        return dict(self._parts.bundle.training)

    def weights_sha256(self) -> str:
        """Return a hash of the weights as they are now; a frozen text encoder has none of them."""
        return weights_sha256(self._parts.trained().state_dict())

    def compile(self) -> float:
        """Compile the transformer's layers, and generate a first clip with them; worthwhile before many clips.

        Returns:
            Seconds that it took: tens on a GPU, minutes on a CPU.

        Raises:
            UserError: torch cannot compile on this machine.
        """
        began = time.monotonic()
        self.lm.compile_layers()
        # sizes of 1, of clips or of words, have graphs of their own
        texts = ["a few words"] * (1 if self.device.type == "cpu" else 2)
        decoding = replace(self.decoding, decoding_steps=(2,) * self.lm.n_q)
        request = ClipRequest(texts, self.segment_duration, 0, decoding, None, None, 0)
        make_tokens(self._parts, request.checked(self._parts))
        return time.monotonic() - began

    def load_adapter(self, path: str | Path, strength: float = 1.0) -> None:
        """Add a LoRA adapter to the model; several add up.

        Args:
            path: The checkpoint of a LoRA fine-tune.
            strength: Factor of the adapter; 1 is as trained.

        Raises:
            UserError: The file holds no adapter, or one for a model of another shape.
        """
        self._parts.load_adapter(path, strength)

    def generate(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        loop: bool = False,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int | Sequence[int] = 0,
        negative: str | Sequence[str | None] | None = None,
        bars: int | None = None,
        bpm: float | None = None,
    ) -> Tensor:
        """Generate audio.

        A clip depends on the model, its caption, the settings, `seed` and its index alone. On a CPU the clips of a
        batch are made one by one, so that each is the same alone, bit for bit; on a GPU its noise is the same, and
        the rest within rounding.

        Args:
            texts: B captions; None or "" makes a clip without one.
            seconds: Length; the model's segment_duration when None. Longer clips are made window by window; each
                overlaps the previous one by 1/4 to 3/4, and begins with a bar if bars last at most 5/8 of a window.
            seed: Makes the result repeatable on the same kind of device, 0..2^63-1; one for all clips, or one for each.
            decoding: Settings of the decoder; the model's own when None.
            prompt: Audio [channels, samples] or [B, channels, samples] at `sample_rate` to continue; a tensor or
                numpy array.
            loop: Make seamless loops: one span at each end of a clip is generated again, with the other end as context.
            progress: Called as progress(steps done, steps in all).
            rescorer: A second model that helps to rank spans, such as `musicgen.MusicgenRescorer`, with weight
                `decoding.rescorer_weight`; on the same device.
            first_index: Index of the first clip; the others follow. Clip 7 of a batch is made alone with its
                caption, the same seed and 7. Or an index for each clip.
            negative: Negative caption, for all clips or for each; it replaces the prediction without a text in
                classifier-free guidance. None or "" keeps that.
            bars: Length of a loop in bars of four beats, in place of `seconds`; needs `bpm`. The loop is stretched by
                at most half a frame, so that it has exactly the nearest number of samples and stays seamless.
            bpm: Tempo of the bars, 20..999 beats per minute.

        Returns:
            float32 [B, channels, samples] on the CPU.

        Raises:
            UserError: An argument is out of range or does not fit the model or another argument.
        """
        if in_bars := bars is not None or bpm is not None:
            seconds = as_loop_seconds(bars, bpm, loop, seconds)
        seconds, decoding = self.segment_duration if seconds is None else seconds, decoding or self.decoding
        request = ClipRequest(
            texts, seconds, seed, decoding, progress, rescorer, first_index, loop=loop, negative=negative
        ).checked(self._parts)
        if prompt is not None:
            request = replace(request, prompt=encode_prompt(self._parts, prompt, request))
        tokens = self._make(request)
        audio = (decode_loop(self.codec, tokens) if loop else self.codec.decode(tokens)).cpu()
        return stretch_loop(audio, round(seconds * self.sample_rate)) if in_bars else audio

    def edit(
        self,
        audio: Tensor,
        region: tuple[float, float],
        texts: Sequence[str | None],
        seed: int | Sequence[int] | None = None,
        decoding: DecodingConfig | None = None,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int | Sequence[int] = 0,
        negative: str | Sequence[str | None] | None = None,
    ) -> Tensor:
        """Regenerate a region of a recording; outside of it and of two fades of 10 ms no sample changes.

        Args:
            audio: [channels, samples] at `sample_rate`, of any length; a tensor or numpy array. The model sees the
                region with as much around it as fits into its segment_duration.
            region: Start and end, in seconds.
            texts: B captions, each of which gives a version; None or "" for one without.
            seed: As in `generate`, like all arguments after it.

        Returns:
            float32 [B, channels, samples] on the CPU.

        Raises:
            UserError: The region leaves the recording or is too long, or another argument does not fit.
        """
        codec = self.codec
        audio = as_audio(audio, codec.channels, "recording", 2)
        hop = samples_per_frame(codec)
        length = audio.shape[-1] / codec.sample_rate
        edit = plan_edit(as_region(region), length, codec.frame_rate, self.segment_duration)
        clip = audio[:, edit.clip_first * hop : edit.clip_end * hop]
        made = self.regenerate(
            clip, edit.keep, texts, seed, decoding, progress, rescorer, first_index, negative
        )
        return splice(audio.cpu(), made, edit, hop, codec.sample_rate)

    def regenerate(
        self,
        clip: Tensor,
        keep: Tensor,
        texts: Sequence[str | None],
        seed: int | Sequence[int] | None = None,
        decoding: DecodingConfig | None = None,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int | Sequence[int] = 0,
        negative: str | Sequence[str | None] | None = None,
    ) -> Tensor:
        """Regenerate frames of a clip; unlike in `edit`, the codec decodes the others too.

        Args:
            clip: float [channels, samples] at `sample_rate`, at most as long as the model's clips.
            keep: bool [T], the frames that stay.
            texts: B captions, each of which gives a version; None or "" for one without.
            seed: As in `generate`, like all arguments after it.

        Returns:
            float32 [B, channels, T * samples a frame] on the CPU.

        Raises:
            UserError: An argument does not fit the model.
        """
        codec, texts = self.codec, as_captions(texts)
        seconds = min(self.segment_duration, len(keep) / codec.frame_rate)
        request = ClipRequest(
            texts,
            seconds,
            seed,
            decoding or self.decoding,
            progress,
            rescorer,
            first_index,
            prompt=codec.encode(clip[None]).expand(len(texts), -1, -1),
            keep=keep.expand(len(texts), -1),
            negative=negative,
        )
        return codec.decode(self._make(request.checked(self._parts))).cpu()

    def generate_tokens(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        keep: Tensor | None = None,
        loop: bool = False,
        progress: Progress | None = None,
        rescorer: RescoringModel | None = None,
        first_index: int | Sequence[int] = 0,
        negative: str | Sequence[str | None] | None = None,
    ) -> Tensor:
        """Generate tokens [B, K, T]; as `generate`, but `prompt` is int64 [B, K, P].

        `keep`, bool [B, P] or [B, K, P], is true for the tokens of the prompt that stay; None keeps all. In parity mode
        the model sees the padding after shorter captions, as the released models do in the reference implementation.
        """
        seconds, decoding = self.segment_duration if seconds is None else seconds, decoding or self.decoding
        request = ClipRequest(
            texts, seconds, seed, decoding, progress, rescorer, first_index, prompt, keep, loop, negative
        ).checked(self._parts)
        return self._make(replace(request, as_reference=decoding.parity))

    def _make(self, request: ClipRequest) -> Tensor:
        if new := self.newly_unknown_words([*request.texts, *(request.negative or ())]):
            warnings.warn(f"{unknown_words_sentence(new)}.", stacklevel=3)
        return make_tokens(self._parts, request)

    def logits_fn(self, texts: Sequence[str | None]) -> LogitsAtFrames:
        """Return the decoder's `logits_fn` for clips with B captions, each encoded alone."""
        return guided_logits(self._parts, texts)

    def measure_passes(
        self, clips: Sequence[tuple[str | None, Tensor]], progress: Progress | None = None
    ) -> StepProfile:
        """Measure the likelihood of real clips with 1 to 32 decoding steps of each codebook, and store it with the model.

        That takes 63 forward passes for each codebook and clip, without guidance.

        Args:
            clips: Two or more captions, each with its tokens int64 [K, T]; preferably of held-out clips.
            progress: Called after each pass with (passes done, passes in all).

        Raises:
            UserError: There are too few clips, or the model gives one the probability 0.
        """
        return measure_passes(self._parts, clips, progress)

    def decoding_for(self, quality: Quality) -> DecodingConfig:
        """Return the model's settings with the decoding steps that its step profile gives for a quality.

        Raises:
            UserError: No profile was measured, or on other weights.
        """
        return replace(self.decoding, decoding_steps=chosen_passes(self._parts, quality))

    def unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List the words of captions that a text encoder with a vocabulary of whole words lacks."""
        tokenizer = getattr(self.text, "tokenizer", None)
        return [] if tokenizer is None else tokenizer.unknown_words(texts)

    def newly_unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List the unknown words that no earlier call listed, so that a warning names each word once."""
        new = [word for word in self.unknown_words(texts) if word not in self._warned]
        self._warned.update(new)
        return new

    def save_pretrained(
        self, folder: str | Path, licence: str | None = None, format: Format = "magnet"
    ) -> None:
        """Write a folder that `from_pretrained` reads, all or nothing.

        Args:
            folder: Target; must not exist or be empty.
            licence: SPDX id or a word, for the model card; None keeps the model's.
            format: "magnet": safetensors, self-contained unless codec or text encoder are on the hub;
                "audiocraft": what `MAGNeT.get_pretrained(folder)` of the reference reads.

        Raises:
            UserError: The target holds something or cannot be written, or audiocraft could not read the model.
        """
        write = _FORMATS.get(format)
        if write is None:
            raise UserError(f"format {format!r} is not known; choose {' or '.join(_FORMATS)}.")
        with tempfile.TemporaryDirectory() as scratch:
            write(self._parts.collect(Path(scratch), self.decoding, licence), Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        licence: str | None = None,
        format: Format = "magnet",
        private: bool = True,
        dry_run: bool = False,
    ) -> list[str]:
        """Upload what `save_pretrained` writes as one commit, and return the files' names, sorted.

        Args:
            repo_id: "you/name"; created if it does not exist. Log in before with `hf auth login`.
            licence: As in `save_pretrained`, like `format`.
            private: Whether a repository created here is private.
            dry_run: Write and check everything, upload nothing.

        Raises:
            UserError: The name is invalid, or the hub refuses or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, licence, format)
            return upload_folder(folder, repo_id, private, dry_run)


def unknown_words_sentence(words: Sequence[str]) -> str:
    """Return a warning about words that a vocabulary lacks, without a full stop."""
    listed = ", ".join(repr(word) for word in words[:20]) + (", ..." if len(words) > 20 else "")
    return f"the model's vocabulary lacks {listed}: the model reads each as the same unknown word"
