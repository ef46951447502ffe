"""Captions of audio files by an audio language model of transformers, such as Qwen2-Audio, for `describe`.

Shapes: audio float32 [samples] at the rate of the model's feature extractor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from datamodules.tokenize.description import GENERATED_CAPTION, Description
from magnet_train.audio import AudioStream
from magnet_train.cli.describing import excerpt
from magnet_train.errors import UserError, first_line
from magnet_train.evaluation.models import weights_sha256
from magnet_train.models.precision import compute_dtype
from magnet_train.storage.hub import SETTINGS, WEIGHTS, find_folder, load_pretrained, unreadable

EXAMPLE = "Qwen/Qwen2-Audio-7B-Instruct"
PROMPT = (
    "Describe this audio in one sentence for a catalogue: what is heard, its genre and mood, its instruments. "
    "Answer with the sentence alone."
)
_WINDOW = 30  # seconds analysed, from the middle of a file; most of these models would cut longer audio
_MOST_TOKENS = 128
FILES = (*SETTINGS, "*.jinja", *WEIGHTS)  # chat templates are Jinja, which transformers renders in a sandbox


class Captioner:
    """An audio language model and its processor, from `from_pretrained`; the same file gets the same caption."""

    def __init__(self, model: Any, processor: Any, identity: str) -> None:
        from transformers import GenerationConfig

        self._model, self._processor, self._identity = model, processor, identity
        self._rate = int(processor.feature_extractor.sampling_rate)
        self._window = min(_WINDOW, getattr(processor.feature_extractor, "chunk_length", _WINDOW))
        stored = model.generation_config
        tokens = {name: getattr(stored, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        # instead of the folder's own settings, which could ask for sampling or a thousand beams
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=_MOST_TOKENS,
            **{f"{name}_token_id": n for name, n in tokens.items()},
        )

    @classmethod
    def from_pretrained(cls, name: str, device: str) -> Self:
        """Load from a folder or a hub id, without running its code, and try the model on a window of silence.

        Raises:
            UserError: It is not an audio language model with processor and chat template, or cannot be read.
        """
        from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoConfig

        what = "captioner"
        folder = find_folder(name, what, FILES)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here
            raise unreadable(name, what, error) from error
        if type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
            raise UserError(
                f"{what} {name} is not an audio language model: its config.json has model_type {config.model_type}; "
                f"choose one such as {EXAMPLE}."
            )
        processor = _load_processor(folder, name)
        dtype = compute_dtype("auto", torch.device(device), config.get_text_config().hidden_size)
        model = load_pretrained(
            MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)], folder, name, what, dtype=dtype
        )
        identity = json.dumps([weights_sha256(folder), PROMPT])
        try:
            captioner = cls(model.to(device), processor, hashlib.sha256(identity.encode()).hexdigest()[:16])
            captioner.caption(np.zeros(captioner._window * captioner._rate, dtype=np.float32), most_tokens=1)
        except Exception as error:  # of model, processor, chat template and memory
            raise UserError(
                f"{what} {name} cannot caption audio ({first_line(error)}); choose an audio language model whose "
                f"processor has a chat template, such as {EXAMPLE}."
            ) from error
        return captioner

    def has_heard(self, description: Description) -> bool:
        """Return whether a description holds this model's caption."""
        return description.captioned_with == self._identity

    def hear(self, path: Path, description: Description) -> Description:
        """Return a description with this model's caption; raises `UserError` if the file cannot be read."""
        stream = AudioStream(path, self._rate, 1, *excerpt(path, self._window))
        caption = self.caption(torch.cat(list(stream), dim=-1)[0].numpy())
        fields = {name: value for name, value in description.fields.items() if name != GENERATED_CAPTION}
        return replace(
            description,
            fields={**fields, GENERATED_CAPTION: caption} if caption else fields,
            captioned_with=self._identity,
        )

    @torch.no_grad()
    def caption(self, audio: npt.NDArray[np.float32], most_tokens: int = _MOST_TOKENS) -> str:
        """Return the model's most probable answer to `PROMPT`, "" if it has none."""
        content = [{"type": "audio", "audio": audio}, {"type": "text", "text": PROMPT}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        (answer,) = self._model.generate(**inputs, max_new_tokens=most_tokens)
        text = self._processor.decode(answer[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(text.split())


def _load_processor(folder: Path, name: str) -> Any:
    """Return the processor of a model; raises `UserError` if there is none, or none that takes audio."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        raise UserError(
            f"captioner {name} has no usable processor ({first_line(error)}); save its own beside its weights."
        ) from error
    extractor = getattr(processor, "feature_extractor", None)
    if not hasattr(extractor, "sampling_rate") or not hasattr(processor, "tokenizer"):
        raise UserError(
            f"captioner {name} does not take audio and text: its processor is a {type(processor).__name__}; choose an "
            f"audio language model such as {EXAMPLE}, with its processor."
        )
    return processor
