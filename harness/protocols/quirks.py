"""The quirks of public code as data, and the page that lists them (``docs/quirks.md``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QuirkEntry:
    """One way in which released code departs from what it means to do, or papers from each other.

    Args:
        number: its number in this project's list.
        title: what it is.
        field: the protocol field that switches it.
        released, intended: the field's values.
        found_in: where it was read.
        effect: what changes.
        test: the test that shows the change.
    """

    number: int
    title: str
    field: str
    released: str
    intended: str
    found_in: str
    effect: str
    test: str


QUIRKS = (
    QuirkEntry(
        number=1,
        title="structure loss without its boundary weight",
        field="quirks.structure_loss",
        released="released",
        intended="intended",
        found_in="AutoGluon, PraNet, InfoSAM",
        effect="a legacy argument of the BCE drops the weight: plain mean BCE + weighted IoU",
        test="tests/harness/training/test_losses.py::test_structure_loss_equals_the_published_formula",
    ),
    QuirkEntry(
        number=2,
        title="weighted F-measure with β² = 0.3",
        field="evaluation.weighted_f_beta2",
        released="0.3",
        intended="1.0",
        found_in="AutoGluon, SAM-Adapter, InfoSAM",
        effect="another number under the same name",
        test="tests/harness/evaluation/test_saliency_conformance.py::test_beta_squared_of_the_weighted_f_equals_pysodmetrics",
    ),
    QuirkEntry(
        number=3,
        title="metrics at the network's input size",
        field="evaluation.resolution",
        released="input",
        intended="native",
        found_in="AutoGluon",
        effect="prediction and mask are compared at 1024 × 1024 instead of the mask's own size",
        test="tests/harness/evaluation/test_scorer.py::test_native_resolution_resizes_the_prediction_and_input_the_mask",
    ),
    QuirkEntry(
        number=4,
        title="overlap per image or from summed areas",
        field="evaluation.overlap",
        released="per-image",
        intended="accumulated",
        found_in="AutoGluon (per image) against mmsegmentation (accumulated)",
        effect="points of difference where objects are small; neither is wrong",
        test="tests/harness/evaluation/test_overlap_conformance.py::test_accumulated_overlap_equals_torchmetrics_over_the_split",
    ),
    QuirkEntry(
        number=5,
        title="Conv-LoRA's gate gets no task gradient; weighting the expert by its share is Switch's idea",
        field="quirks.moe_gate",
        released="released",
        intended="intended",
        found_in="AutoGluon",
        effect="the released gate is a softmax over one kept logit, that is 1, and only the balance loss trains it; the "
        "other way is Switch's (2101.03961), not Conv-LoRA's, and such rows say `Switch gate`",
        test="tests/methods/test_convlora.py::test_task_gradient_reaches_the_gate_only_under_switch",
    ),
    QuirkEntry(
        number=6,
        title="SSF starts from noise",
        field="quirks.ssf_init",
        released="released",
        intended="intended",
        found_in="SSF's code, micro-sam",
        effect="scale ~ N(1, 0.02²) and shift ~ N(0, 0.02²) instead of the identity",
        test="tests/methods/test_additive_baselines.py::test_ssf_starts_from_noise_as_released_and_from_the_identity_as_intended",
    ),
    QuirkEntry(
        number=7,
        title="number of classes inferred from mask values",
        field="quirks.class_count",
        released="released",
        intended="intended",
        found_in="AutoGluon",
        effect="a class that no training mask shows is missing from the head",
        test="tests/harness/test_quirks.py::test_class_count_changes",
    ),
    QuirkEntry(
        number=8,
        title="checkpoint selected on the test split",
        field="quirks.selection",
        released="released",
        intended="intended",
        found_in="SAM-Adapter, CAT-SAM; InfoSAM reports epochs 6–10 of test",
        effect="optimistic numbers; such cells are labelled",
        test="tests/harness/test_quirks.py::test_selection_changes",
    ),
    QuirkEntry(
        number=9,
        title="CAMO trained with COD10K",
        field="quirks.camo_train",
        released="released",
        intended="intended",
        found_in="SINet and its followers",
        effect="4040 training images instead of 1000",
        test="tests/harness/test_quirks.py::test_camo_train_changes",
    ),
    QuirkEntry(
        number=10,
        title="weights that the Mask2Former loss is given, and K mask tokens",
        field="class_weight, mask_weight, dice_weight, mask_tokens",
        released="10, 5, 5; K = 1",
        intended="2, 5, 5; K = 100",
        found_in="AutoGluon against Mask2Former",
        effect="the weights count as quirk 13 says; with K = 1 every pixel of an image gets the same class; cards with "
        "several classes ask for more in `benchmarks`, and `--set mask_tokens=1` brings it back",
        test="tests/harness/test_quirks.py::test_multiclass_loss_and_masks_change",
    ),
    QuirkEntry(
        number=11,
        title="masks keep only the value 255",
        field="quirks.mask_decoding",
        released="released",
        intended="intended",
        found_in="InfoSAM (mask/255 as uint8)",
        effect="JPEG and anti-aliased masks erode",
        test="tests/datasets/test_readers.py::test_quirk_mask_255_only_is_a_switch_of_every_binary_benchmark",
    ),
    QuirkEntry(
        number=12,
        title="SAM's positional encoding left random",
        field="quirks.strict_loading",
        released="released",
        intended="intended",
        found_in="SAM-Adapter (strict=False)",
        effect="the decoder reads another positional encoding than it was pre-trained with",
        test="tests/harness/test_quirks.py::test_strict_loading_changes",
    ),
    QuirkEntry(
        number=13,
        title="Mask2Former loss weights that are never applied",
        field="quirks.mask2former",
        released="released",
        intended="intended",
        found_in="AutoGluon (with transformers' Mask2FormerLoss, which leaves its weights to the model around it)",
        effect="class, mask and dice terms count 1 : 1 : 1 whatever weights the card names; mask and dice are divided by all "
        "regions, also by those that no mask token was left for; regions are matched with the card's `match_…_weight`",
        test="tests/harness/training/test_losses.py::test_cards_give_the_weights_that_they_name",
    ),
    QuirkEntry(
        number=14,
        title="SAM's spare mask tokens deleted",
        field="quirks.spare_tokens",
        released="released",
        intended="intended",
        found_in="AutoGluon",
        effect="mask tokens attend to each other, so a decoder with one of them gives other logits; a merged model is then "
        "no plain SAM and is not exported as one",
        test="tests/harness/test_quirks.py::test_spare_tokens_change",
    ),
    QuirkEntry(
        number=15,
        title="SAM-Adapter's patch embedding scrambled",
        field="quirks.samadapter_embedding",
        released="released",
        intended="intended",
        found_in="SAM-Adapter",
        effect="the embedding (N, H, W, C) is reshaped to (N, C, HW) as it lies in memory instead of transposed: each token's "
        "prompt is made of other tokens' channels",
        test="tests/harness/test_quirks.py::test_samadapter_embedding_changes",
    ),
)


def quirks_page() -> str:
    """Markdown of ``docs/quirks.md``."""
    lines = [
        "# Quirks: what released code does against what it means to do",
        "",
        "Generated by `sam-peft protocols quirks`. Every row is a field of a protocol card: set it there or with",
        "`--set FIELD=VALUE`.",
        "A changed quirk changes the protocol's hash, and tables keep different hashes apart.",
        "",
        "| # | quirk | field | released | intended | found in | effect | shown by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for q in QUIRKS:
        test = q.test.rpartition("::")[2]
        lines.append(
            f"| {q.number} | {q.title} | `{q.field}` | `{q.released}` | `{q.intended}` | {q.found_in} | {q.effect} | `{test}` |"
        )
    return "\n".join(lines) + "\n"
