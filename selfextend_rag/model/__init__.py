"""Extend a transformers model, restore it, and say what can be extended."""

from selfextend_rag.model.extension import ModelLock as ModelLock
from selfextend_rag.model.extension import by_rows as by_rows
from selfextend_rag.model.extension import continuation_reason as continuation_reason
from selfextend_rag.model.extension import current_settings as current_settings
from selfextend_rag.model.extension import extend as extend
from selfextend_rag.model.extension import extended as extended
from selfextend_rag.model.extension import is_extended as is_extended
from selfextend_rag.model.extension import lock_of as lock_of
from selfextend_rag.model.extension import refuse_chunks as refuse_chunks
from selfextend_rag.model.extension import restore as restore
from selfextend_rag.model.extension import support as support
from selfextend_rag.model.extension import switched as switched
from selfextend_rag.model.hooks import AttentionCall as AttentionCall
from selfextend_rag.model.observe import observed as observed
from selfextend_rag.model.observe import quick_steps as quick_steps
from selfextend_rag.model.pictures import PictureSpan as PictureSpan
from selfextend_rag.model.pictures import PromptPictures as PromptPictures
from selfextend_rag.model.pictures import picture_embeddings as picture_embeddings
from selfextend_rag.model.report import SupportReport as SupportReport
from selfextend_rag.model.tiny import with_full_attention as with_full_attention
