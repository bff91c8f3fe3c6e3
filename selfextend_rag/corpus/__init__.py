"""Questions about many documents, each read whole: answered one by one, or over many replicas."""

from selfextend_rag.corpus.answering import ModelSpec
from selfextend_rag.corpus.rows import CorpusRow
from selfextend_rag.corpus.run import CorpusResult, run_corpus

__all__ = ["CorpusResult", "CorpusRow", "ModelSpec", "run_corpus"]
