"""Measure rescoring by an autoregressive model: does it make better clips, at several weights and steps?

    python benchmarks/rescoring.py --work runs/ablations
    python benchmarks/rescoring.py --work runs/tiny --tiny     # checks that the script works

A MAGNeT of the quickstart's size is stopped early, so that there is something to gain. A MusicGen of about that size learns
from more clips of the same world (it soon memorises the 1,400 of MAGNeT). Captions that neither saw, of combinations that
training had and of held-out ones, are generated with the same seeds at each weight of the rescorer (0: without), with the
quickstart's steps and with few.

The rescorer's own loss on real clips measures how much it knows: with the finer codebooks visible, as in its training, and
hidden, as when it rescores. "hiding" is the same MusicGen trained a little longer with finer codebooks hidden in half of
the clips, unlike a released one. Results of earlier runs are reused.

Source: arXiv 2401.04577, section 3.4, which gives neither the weight nor what the rescorer reads in place of codebooks
that are not generated yet.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ablations import base_fit_words
from rich.progress import track
from torch import Tensor
from transformers import (
    AutoConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5EncoderModel,
)

from harness.quickstart_world import (
    BATCH,
    RESULTS,
    command,
    generate_and_read,
    hardware,
    make_world_shards,
    write_json,
)
from harness.quickstart_world import scores as exact_scores
from harness.tones.captions import Caption
from harness.tones.oracle import Readings, chance, read_clips
from harness.tones.world import ToneWorld
from magnet_train import Magnet
from magnet_train.apps.quickstart.run import through_codec
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.masking import mask_for_stage
from magnet_train.pipeline.musicgen import MusicgenRescorer, delayed
from magnet_train.text.encoder import Tokenizer, folder_of

SEED = 0
DIM, LAYERS, HEADS = 128, 4, 4  # as the quickstart's MAGNeT
LEARNING_RATE, WARM_UP, ROWS = 2e-3, 100, 16  # likewise; clips in a batch
HIDDEN = 0.5  # share of the clips whose finer codebooks are hidden while the second rescorer trains
VALIDATION = 160  # clips
WEIGHTS = {"musicgen": (0.25, 0.5, 0.75, 1.0), "hiding": (0.5, 1.0)}
STEPS = {
    "usual": (10, 4, 4, 4),
    "few": (3, 2, 2, 2),
}  # the quickstart's, and about the fewest that leave a ranking


def clips(work: Path, count: int, split: str) -> tuple[Tensor, list[str]]:
    """Return tokens int64 [N, K, T] and captions of the first clips of a split; encode them unless an earlier run has."""
    file = work / f"{split}-{count}.pt"
    captions = [caption.text for caption in ToneWorld().captions(count, split)]
    if not file.exists():
        codec = load_codec("quickstart")
        sounds = torch.stack([torch.from_numpy(audio) for _, audio in ToneWorld().clips(count, split)])
        batches = track(sounds[:, None].split(BATCH), f"encode {split}")
        torch.save(torch.cat([codec.encode(batch) for batch in batches]), file)
    return torch.load(file, weights_only=True), captions


def new_musicgen() -> MusicgenForConditionalGeneration:
    """Build a random MusicGen around the packaged codec, with the quickstart's text encoder."""
    codec = EncodecModel.from_pretrained(packaged_codec())
    decoder = MusicgenDecoderConfig(
        vocab_size=codec.config.codebook_size,
        num_codebooks=codec.config.num_quantizers,
        hidden_size=DIM,
        ffn_dim=4 * DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        dropout=0.0,
        pad_token_id=codec.config.codebook_size,
        bos_token_id=codec.config.codebook_size,
    )
    return MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel(AutoConfig.from_pretrained(folder_of("quickstart"))),
        audio_encoder=codec,
        decoder=MusicgenForCausalLM(decoder),
    )


def hide_finer(tokens: Tensor, card: int) -> Tensor:
    """Return a copy of the tokens [B, K, T] in which a share of the clips hides the codebooks above a random one."""
    stages = torch.randint(tokens.shape[1], (len(tokens), 1, 1))
    whole = torch.rand(len(tokens), 1, 1) >= HIDDEN
    finer = torch.arange(tokens.shape[1])[:, None] > stages
    return tokens.masked_fill(finer & ~whole, card)


def train_musicgen(work: Path, count: int, steps: int, start: Path | None = None) -> Path:
    """Train a MusicGen, or a trained one further with finer codebooks hidden, unless an earlier run has.

    Returns:
        Its folder.
    """
    folder = work / (f"musicgen-{count}-{steps}" if start is None else f"{start.name}-hiding-{steps}")
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(SEED)
    model = new_musicgen() if start is None else MusicgenForConditionalGeneration.from_pretrained(start)
    tokenizer = Tokenizer("quickstart", max_length=256)
    everything, captions = clips(work, count, "train")
    n_q, frames = everything.shape[1:]
    card = model.config.decoder.vocab_size
    model.audio_encoder.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, (0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=min(WARM_UP / steps, 0.5), cycle_momentum=False
    )
    model.train()
    order = torch.cat([torch.randperm(count) for _ in range(-(-steps * ROWS // count))])
    for rows in track(order[: steps * ROWS].split(ROWS), folder.name):
        tokens = everything[rows]
        read = tokens if start is None else hide_finer(tokens, card)
        ids, mask = tokenizer([captions[row] for row in rows.tolist()])
        logits = model(
            input_ids=ids,
            attention_mask=mask.long(),
            decoder_input_ids=delayed(read, card, frames + n_q - 1).flatten(0, 1),
        ).logits.unflatten(0, (-1, n_q))  # [B, K, columns, card]
        own = torch.stack([logits[:, k, k : k + frames] for k in range(n_q)], dim=1)  # [B, K, T, card]
        # Hidden tokens are card and have no loss.
        loss = F.cross_entropy(own.flatten(0, 2), read.flatten(), ignore_index=card)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    return folder


def rescorer_nats(work: Path, rescorer: MusicgenRescorer) -> dict[str, list[float]]:
    """Return the mean loss of each codebook on validation clips, nats a token, finer codebooks visible and hidden."""
    tokens, captions = clips(work, VALIDATION, "validation")
    probabilities = rescorer.for_texts(captions)
    nothing = torch.zeros(tokens.shape[::2], dtype=torch.bool)
    nats: dict[str, list[float]] = {"finer_shown": [], "finer_hidden": []}
    for stage in range(rescorer.n_q):
        hidden = mask_for_stage(tokens, nothing, stage, rescorer.card)
        for name, read in (("finer_shown", tokens), ("finer_hidden", hidden)):
            nats[name].append(round(-float(probabilities(read, stage).log().mean()), 3))
    return nats


def scores(captions: list[Caption], readings: Readings) -> dict[str, float]:
    """Return how often each attribute, and the whole clip, is right, 0..1."""
    return {name: round(value, 4) for name, value in exact_scores(captions, readings).items()}


def measure(
    magnet: Magnet, rescorers: dict[str, MusicgenRescorer], counts: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Return scores by kind of captions, steps, rescorer and weight, with chance and ceiling."""
    result: dict[str, Any] = {}
    world, codec = ToneWorld(), load_codec("quickstart")
    for kind, count in counts.items():
        unseen = kind == "unseen"
        captions = world.captions(count, "test", unseen=unseen)
        repeated = captions * rounds
        real = [audio for _, audio in world.clips(count, "test", unseen=unseen)]
        result[kind] = {"ceiling": scores(captions, read_clips(through_codec(codec, real)))}
        for name, steps in STEPS.items():
            decoding = replace(magnet.decoding, decoding_steps=steps)
            plain = generate_and_read(magnet, repeated, SEED, decoding=decoding)
            rows: dict[str, Any] = {"0": scores(repeated, plain)}
            if name == "usual":
                result[kind]["chance"] = {
                    key: round(x, 4) for key, x in chance(repeated, plain, SEED).items()
                }
            for which, rescorer in rescorers.items():
                for weight in WEIGHTS[which]:
                    mixed = replace(decoding, rescorer_weight=weight)
                    readings = generate_and_read(magnet, repeated, SEED, decoding=mixed, rescorer=rescorer)
                    rows.setdefault(which, {})[f"{weight:g}"] = scores(repeated, readings)
            result[kind][name] = rows
            print(json.dumps({kind: {name: rows}}, indent=1), flush=True)
    return result


def seconds_per_clip(magnet: Magnet, rescorer: MusicgenRescorer) -> dict[str, float]:
    """Return the CPU time of a clip with and without the rescorer, at the quickstart's steps (s)."""
    texts = [caption.text for caption in ToneWorld().captions(BATCH, "test")]
    seconds = {}
    for name, model in (("without", None), ("with", rescorer)):
        began = time.process_time()
        magnet.generate_tokens(texts, seed=SEED, rescorer=model)
        seconds[name] = round((time.process_time() - began) / BATCH, 4)
    return seconds


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of shards and runs")
    for name, default, text in (
        ("--base-steps", 300, "training steps of MAGNeT"),
        ("--steps", 1000, "training steps of MusicGen"),
        ("--clips", 6000, "clips that MusicGen learns from"),
        ("--rounds", 1, "clips of each caption, with different seeds"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--tiny", action="store_true", help="few steps and clips, to check the script")
    parser.add_argument(
        "--out", type=Path, help="JSON file to write (default: benchmarks/results/rescoring.json)"
    )
    args = parser.parse_args()
    args.captions = {"seen": 180, "unseen": 96}
    if args.tiny:
        args.base_steps, args.steps, args.clips, args.rounds = 3, 3, 32, 1
        args.captions = {"seen": 12, "unseen": 12}
    args.out = args.out or (args.work if args.tiny else RESULTS) / "rescoring.json"
    return args


def main() -> None:
    """Train the models, generate, and write the record."""
    args = parse_arguments()
    torch.set_num_threads(1)
    make_world_shards(args.work)
    base = args.work / f"base-{args.base_steps}-{SEED}"
    if not (base / "last.ckpt").exists():
        command("fit", *base_fit_words(args.work, base, SEED, args.base_steps))
    began = time.monotonic()
    musicgen = train_musicgen(args.work, args.clips, args.steps)
    hiding = train_musicgen(args.work, args.clips, args.steps // 3, start=musicgen)
    rescorers = {
        "musicgen": MusicgenRescorer.from_pretrained(musicgen),
        "hiding": MusicgenRescorer.from_pretrained(hiding),
    }
    minutes = (time.monotonic() - began) / 60
    magnet = Magnet.from_pretrained(base / "last.ckpt")
    record: dict[str, Any] = {
        "hardware": hardware(),
        "base_steps": args.base_steps,
        "musicgen_steps": args.steps,
        "musicgen_clips": args.clips,
        "musicgen_minutes": round(minutes, 1),
        "decoding_steps": STEPS,
        "captions": args.captions,
        "rounds": args.rounds,
        "nats": {name: rescorer_nats(args.work, rescorer) for name, rescorer in rescorers.items()},
        "seconds_per_clip": seconds_per_clip(magnet, rescorers["musicgen"]),
    }
    print(json.dumps(record, indent=1), flush=True)
    record |= measure(magnet, rescorers, args.captions, args.rounds)
    write_json(args.out, record)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
