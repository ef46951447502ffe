"""Train a MAGNeT on a folder of shards with torch alone, in the order of the paper (arXiv 2401.04577).

`fit` trains the same objective and adds what a long run needs: data order and resuming, many devices, averaged
weights, validation.

    magnet-train tokenize --audio my_folder --out shards --codec quickstart
    python examples/train_minimal.py shards
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from datamodules.shards.reading import ShardReader
from magnet_train.audio import write_audio
from magnet_train.codecs import load_codec
from magnet_train.decoding import DecodingConfig, generate_tokens
from magnet_train.masking import mask_rate, span_mask
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.text import WordText
from magnet_train.text.vocabulary import split_words
from magnet_train.training.objective import predict_masked, sum_losses

BATCH, SECONDS = 16, 1.28  # clips in a batch, length of a clip
DIM = 128  # width of the model
CONDITION_DROPOUT = 0.1  # share of clips trained without their caption, for guidance


def random_clips(
    reader: ShardReader, frames: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """Draw clips: tokens int64 [B, K, T], valid bool [B, T], captions."""
    codec = reader.manifest.codec
    tokens = torch.full((BATCH, codec.n_q, frames), codec.mask_id)
    valid = torch.zeros(BATCH, frames, dtype=torch.bool)
    captions = []
    for row, number in enumerate(torch.randint(len(reader), (BATCH,), generator=generator).tolist()):
        sample = reader[number]
        spare = max(0, sample.tokens.shape[1] - frames)
        start = int(torch.randint(spare + 1, (), generator=generator))
        crop = torch.from_numpy(sample.tokens[:, start : start + frames].astype("int64"))
        tokens[row, :, : crop.shape[1]] = crop
        valid[row, : crop.shape[1]] = True
        captions.append(str(sample.metadata.get("text", "")))
    return tokens, valid, captions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path, help="folder that `magnet-train tokenize` wrote")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("sample.wav"), help="what the model makes")
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    reader = ShardReader(args.shards)
    codec = reader.manifest.codec
    frames = codec.frames(SECONDS)

    # The model: a bidirectional transformer over the sum of K token embeddings, conditioned by cross-attention to the
    # caption (section 3). One vector for each word of the captions stands in for T5.
    texts = [str(reader[number].metadata.get("text", "")) for number in range(len(reader))]
    vocabulary = {word for caption in texts for word in split_words(caption)}
    text = WordText("captions", dim=DIM, words=sorted(vocabulary))
    lm = MagnetTransformer(codec.n_q, codec.card, text_dim=DIM, dim=DIM, num_heads=4, num_layers=4)
    lm.set_codec(codec.frame_rate, codec.streams)
    optimizer = torch.optim.AdamW([*lm.parameters(), *text.parameters()], lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=args.steps)

    for step in range(1, args.steps + 1):
        tokens, valid, captions = random_clips(reader, frames, generator)
        # One codebook for each clip, in turn (the paper draws one for each step); of it, spans at a rate from the
        # cosine schedule (section 3.1).
        stages = [row % codec.n_q for row in range(BATCH)]
        rate = mask_rate(torch.rand(BATCH, generator=generator))
        mask = span_mask(rate, torch.rand(BATCH, frames, generator=generator), lm.span_len)
        # Some clips lose their caption, so that decoding can guide towards it.
        keep_condition = torch.rand(BATCH, generator=generator) >= CONDITION_DROPOUT
        states, words = text(captions)
        # Coarser codebooks are visible and finer ones hidden; cross-entropy where the clip's codebook is masked.
        predictions = predict_masked(lm, tokens, mask, valid, stages, states, words & keep_condition[:, None])
        sums = sum_losses(predictions, codec.n_q, tokens.device)
        loss = sums.total / sums.counts.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*lm.parameters(), *text.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 20) == 0:
            by_codebook = "  ".join(
                f"{value:.2f}" for value in (sums.nats / sums.counts.clamp(min=1)).tolist()
            )
            print(f"step {step}  loss {loss.item():.3f} nats a token  by codebook {by_codebook}", flush=True)

    # Decoding: codebook by codebook from all masked, keeping the most probable spans of each step (section 3.3).
    lm.eval()
    caption = texts[0]
    with torch.inference_mode():
        states, words = text([caption])
        decoding = DecodingConfig(decoding_steps=(10,) + (4,) * (codec.n_q - 1), max_cfg_coef=2.0)
        made = generate_tokens(
            GuidedLogits(lm, states, words, hide_padding=True),
            (1, codec.n_q, frames),
            decoding,
            card=codec.card,
            span_len=lm.span_len,
            generator=generator,
        )
        audio = load_codec(codec).decode(made)[0]
    write_audio(args.out, audio, codec.sample_rate)
    print(f"wrote {args.out}: {caption!r}")


if __name__ == "__main__":
    main()
