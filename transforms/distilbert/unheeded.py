"""Settings and files of a checkpoint that distilbeam neither heeds nor knows to change nothing.

What would change the features is refused where it is read; here is what remains, which is said and not passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .files import is_there, plain, read_json, shown
from .sentence import SENTENCE_FILES

__all__ = ["check_settings", "unheeded"]

_MAX_NAMED = 5
_MAX_ENTRIES = 10_000

# Names, with * for any characters: what is read, and what does not touch ids, vectors or scores of inference.
_TRAINING = ("*dropout*", "initializer_range", "*_loss*", "gradient_checkpointing", "problem_type", "finetuning_task")
_GENERATION = (
    *(
        "*_token_id",
        "*length*",
        "*num_beam*",
        "*do_sample",
        "early_stopping",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ),
    *("*penalty", "diversity_*", "*ngram*", "bad_words_ids", "num_return_sequences", "remove_invalid_values", "prefix"),
    *(
        "begin_suppress_tokens",
        "suppress_tokens",
        "forced_*",
        "task_specific_params",
        "cross_attention_*",
        "is_decoder",
    ),
    *("is_encoder_decoder", "add_cross_attention", "use_cache", "tie_*"),
)
_CONFIG = (
    *("vocab_size", "max_position_embeddings", "dim", "n_layers", "n_heads", "hidden_dim", "activation", "hidden_size"),
    *("num_hidden_layers", "num_attention_heads", "model_type", "architectures", "auto_map", "custom_pipelines"),
    *("trust_remote_code", "id2label", "label2id", "num_labels", "sinusoidal_pos_embds", "pruned_heads"),
    *("quantization_config", "transformers_version", "dtype", "torch_dtype", "torchscript", "use_bfloat16", "return_*"),
    *("output_*", "chunk_size_feed_forward", "_*", "attn_implementation", "tokenizer_class", "use_return_dict"),
    *("tf_legacy_loss", "language", "name", "license", "summary_*", "adapters"),
    *_TRAINING,
    *_GENERATION,
)
_TOKENIZER = (
    *(
        "*_token",
        "additional_special_tokens",
        "extra_special_tokens",
        "added_tokens_decoder",
        "auto_map",
        "truncation_side",
    ),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class", "model_max_length", "max_len"),
    *(
        "split_special_tokens",
        "model_specific_special_tokens",
        "max_length",
        "stride",
        "truncation*",
        "pad*",
        "backend",
    ),
    *("clean_up_tokenization_spaces*", "name_or_path", "*_file", "*_files", "is_local", "local_files_only", "use_fast"),
    *("model_input_names", "return_*", "processor_class", "*chat_*", "verbose", "from_slow", "legacy", "trim_offsets"),
    *("add_prefix_space", "wordpieces_prefix", "errors", "do_basic_tokenize", "never_split", "device", "__*", "_*"),
    *("response_*", "init_inputs", "language", "max_model_input_sizes", "transformers_version", "tokenizer_type"),
)
_SENTENCE = (
    *("max_seq_length", "do_lower_case", "processing_kwargs", "transformer_task", "modality_config", "tokenizer_args"),
    *("processor_kwargs", "module_output_name", "model_args", "model_kwargs", "config_args", "config_kwargs"),
    *("unpad_inputs", "query_length", "document_length", "query_expansion", "__version__"),
)
_WHOLE = ("truncate_dim", "default_prompt_name", "prompts", "similarity_fn_name", "model_type", "__version__")
_FILES = (
    *(
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ),
    *("special_tokens_map.json", "added_tokens.json", "modules.json", "config_sentence_transformers.json"),
    *("*_Transformer", "*_Pooling", "*_Normalize", "*_Dense", "*_Dropout", "*_LayerNorm", "*_CNN", "*_LSTM"),
    *(".*", "*.md", "*.MD", "LICENSE*", "LICENCE*", "NOTICE*", "README*", "CITATION*", "*.py", "*.ipynb", "*.cff"),
    *("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.gguf"),
    *("*.mlmodel", "*.mlpackage", "*.tflite", "*.xml", "onnx", "openvino", "coreml", "tflite", "runs", "logs", "eval*"),
    *("checkpoint-*", "generation_config.json", "preprocessor_config.json", "*chat_template*", "handler.py"),
    *("*_results.json", "*_state.json", "training_args*", "*.csv", "*.tsv", "*.log", "*.png", "*.jpg", "*.jpeg"),
    *("*.svg", "*.gif", "*.pdf", "*.yaml", "*.yml", "*.model", "requirements*.txt", "similarity_evaluation*"),
    *("ort_config.json", "metrics.json", "train_script.py", "data_config.json", "model_card.json", "*.lock"),
    *SENTENCE_FILES,
)


def check_settings(root: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that would make another model of these weights.

    Args:
        root: the checkpoint.
        folder: that of its transformer.
        config: its config.json.

    Raises:
        CheckpointError: there are some.
    """
    path = shown(folder / "config.json")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{path} says that the weights are quantized (quantization_config); save the model dequantized, and choose "
            "the dtype to compute in with `dtype`"
        )
    if config.get("pruned_heads"):
        raise CheckpointError(f"{path} says that heads were pruned (pruned_heads); distilbeam runs a whole DistilBERT")
    for place in {root, folder}:
        if is_there(place / "adapter_config.json"):
            raise CheckpointError(
                f"{shown(place / 'adapter_config.json')} puts an adapter on the model, which transformers would load; "
                "merge it into the weights (merge_and_unload of peft), or take the file away to have the model alone"
            )


def unheeded(root: Path, folder: Path) -> tuple[str, ...]:
    """A sentence for each file with settings, and each folder with files, that are neither heeded nor known.

    Args:
        root: the checkpoint.
        folder: that of its transformer.
    """
    known = {folder / "config.json": _CONFIG, folder / "tokenizer_config.json": _TOKENIZER}
    known |= {folder / name: _SENTENCE for name in SENTENCE_FILES}
    known[root / "config_sentence_transformers.json"] = _WHOLE
    sentences = []
    for path, names in known.items():
        if not is_there(path):
            continue
        settings = read_json(path)
        others = [key for key in settings if not _matches(key, names) and settings[key] is not None]
        if path.name == "tokenizer_config.json":
            # Slow tokenizers alone heed them, which transformers no longer has.
            others += [key for key in ("never_split",) if settings.get(key)]
            others += [key for key in ("do_basic_tokenize",) if settings.get(key) is False]
        if others:
            sentences.append(
                f"{shown(path)} has settings that distilbeam does not know and does not heed: {_few(others)}"
            )
    for place in dict.fromkeys((root, folder)):
        try:
            entries = sorted(path.name for path in islice(place.iterdir(), _MAX_ENTRIES))
        except OSError:  # one that can be entered and not listed
            continue
        inside = folder.relative_to(root).parts[:1] if folder != root else ()
        others = [name for name in entries if not _matches(name, _FILES) and name not in inside]
        if others:
            sentences.append(
                f"{shown(place)} has files that distilbeam does not know and does not read: {_few(others)}"
            )
    return tuple(sentences)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _few(names: list[str]) -> str:
    told = ", ".join(plain(name, 60) for name in names[:_MAX_NAMED])
    return told if len(names) <= _MAX_NAMED else f"{told} and {len(names) - _MAX_NAMED} more"
