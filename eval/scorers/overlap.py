"""How much of a reference text the answer shares: ROUGE, BLEU, chrF.

Owns: which implementation is asked, and with what settings. Never: an implementation of its own; I/O.

The libraries are imported when a suite that uses them is read, not before.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools, need_text, texts_of


class _Overlap(Scorer, frozen=True):
    threshold: float | None = None
    """1 from there on and 0 below, in place of the share."""

    def check(self, target: Any) -> None:
        need_text(target, type(self).__name__.lower())
        for text in texts_of(target):
            if self.overlap(text, [text]) < 0.99:
                raise ScorerError(
                    f"the target {text!r} does not match itself: it has no word that this measure sees; use 'chrf'"
                )

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        value = min(1.0, max(0.0, self.overlap(answered.text, list(texts_of(target)))))
        if self.threshold is None:
            return Score(value)
        return Score(float(value >= self.threshold), f"overlap {value:.3f}")

    def overlap(self, text: str, references: list[str]) -> float:
        """0 to 1, to float error."""
        raise NotImplementedError


class Rouge(_Overlap, frozen=True):
    """ROUGE of the answer (rouge-score), the best over several references. It sees Latin letters and digits only."""

    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    part: Literal["fmeasure", "precision", "recall"] = "fmeasure"
    stem: bool = True
    """Compare word stems (Porter)."""

    def overlap(self, text: str, references: list[str]) -> float:
        scorer = _rouge(self.variant, self.stem)
        return max(float(getattr(scorer.score(reference, text)[self.variant], self.part)) for reference in references)


class Bleu(_Overlap, frozen=True):
    """Sentence BLEU (sacrebleu) with effective order: an answer of three words is judged on one to three of them."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    lowercase: bool = False

    def overlap(self, text: str, references: list[str]) -> float:
        metric = _sacrebleu("BLEU", tokenize=self.tokenize, lowercase=self.lowercase, effective_order=True)
        return float(metric.sentence_score(text, references).score) / 100


class Chrf(_Overlap, frozen=True):
    """chrF (sacrebleu): F score over character n-grams, in any script; `words: 2` is chrF++."""

    words: int = 0
    """The longest n-gram of words that counts beside those of characters."""
    lowercase: bool = False

    def overlap(self, text: str, references: list[str]) -> float:
        metric = _sacrebleu("CHRF", word_order=self.words, lowercase=self.lowercase)
        return float(metric.sentence_score(text, references).score) / 100


@cache
def _rouge(variant: str, stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ScorerError(f"ROUGE needs rouge-score ({error}): pip install '.[eval]'") from error
    return RougeScorer([variant], use_stemmer=stem)


@cache
def _sacrebleu(metric: str, **settings: Any) -> Any:
    try:
        from sacrebleu import metrics  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ScorerError(f"BLEU and chrF need sacrebleu ({error}): pip install '.[eval]'") from error
    return getattr(metrics, metric)(**settings)
