from pathlib import Path

from setuptools import find_packages, setup


# What each floor and ceiling is for: transformers 5.24 names a model's cache `cache`, and 5.40 takes the older name
# `past_key_values` away; TRL keeps its trainer bases private, so 2.0 may move them.
INSTALL = [
    "torch>=2.6",
    "transformers>=5.24,<6",
    "trl>=1.16,<2",
    "peft>=0.18",
    "accelerate>=1.10.1",
    "datasets>=4.7",
    "evaluate>=0.4.6",
    "huggingface_hub>=1.31,<3",
    "rouge_score>=0.1.2",
    "safetensors>=0.8",
    "numpy",
    "datasketch>=2",  # 2.0: 32-bit permutation scheme
    "pyyaml>=6.0.1",
    "jinja2",
    "threadpoolctl>=3",
    "rich",
    "tokenizers",
    "tqdm",
]

# Plots of recipes/evaluate.py.
EVALUATION = ["matplotlib>=3.8"]
# The libraries the drop-ins of tokforget/integrations fit into.
LANGCHAIN, LLAMA_INDEX = ["langchain-core>=1.0,<2"], ["llama-index-core>=0.14,<0.15"]
# 1.110: the version that the hook was run with.
LITELLM = ["litellm>=1.110,<2"]
# The versions that the adapters were run with; Spark 4 runs on Java 17 and 21, and hands over rows by Arrow.
RAY, SPARK = ["ray[data]>=2.60,<3"], ["pyspark>=4.0,<5", "pyarrow>=11"]

# `tokforget serve`; uvicorn 0.32: the last change to what tokforget/service/server.py builds on.
SERVE = ["fastapi>=0.115", "uvicorn>=0.32", "prometheus-client>=0.20"]
# A browser's driver, for tests of the service's page; the browser is the machine's own.
BROWSER = ["playwright>=1.45"]

# Vocabularies of models that are not on the Hub, for `count_tokens`.
TIKTOKEN = ["tiktoken>=0.7"]

# `tokforget export` and the backend "onnx": operators of opset 20, and NumPy 2.
ONNX = ["onnxruntime>=1.19", "onnx>=1.17"]

# BM25 as a rival, and what transformers reads GGUF files with (`make smollm2`).
READERS = ["bm25s>=0.2", "gguf>=0.10"]
# Folders of the checkout that a wheel carries inside the package; tokforget/shipped.py finds them in both places.
BESIDE = ["recipes", "accelerate_configs", "hub_cards"]

# The generator of the site that `make docs` builds.
DOCS = ["mkdocs>=1.6"]

setup(
    name="tokforget",
    version="0.1.0",
    description="Learn which tokens of a prompt a language model can do without, and restore them",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")],
    packages=[*find_packages(include=["tokforget*"]), *(f"tokforget.{name}" for name in BESIDE)],
    package_dir={f"tokforget.{name}": name for name in BESIDE},
    package_data={
        "tokforget": [
            "py.typed",
            "assets/base_model/*",
            "assets/reader_model/*",
            "assets/reader_model/adapter/*",
            "assets/forget_model/*",
            "assets/forget_model/adapter/*",
        ],
        "tokforget.evaluation": ["templates/*"],
        "tokforget.service.pages": ["*.html"],
        "tokforget.hub_cards": ["*.md"],
        "tokforget.recipes": ["*.yaml"],
        "tokforget.accelerate_configs": ["*.yaml"],
        "tokforget.metrics": ["*/*.py", "*/README.md"],
    },
    entry_points={"console_scripts": ["tokforget=tokforget.cli.main:main"]},
    install_requires=INSTALL,
    extras_require={
        "evaluation": EVALUATION,
        "readers": READERS,
        "deepspeed": ["deepspeed>=0.18.6"],
        "langchain": LANGCHAIN,
        "llama-index": LLAMA_INDEX,
        "litellm": LITELLM,
        "ray": RAY,
        "spark": SPARK,
        "serve": SERVE,
        "browser": BROWSER,
        "tiktoken": TIKTOKEN,
        "onnx": ONNX,
        "docs": DOCS,
        "test": [
            "pytest>=8",
            "pytest-xdist",
            "hypothesis",
            "regex",
            *DOCS,
            *EVALUATION,
            *READERS,
            *LANGCHAIN,
            *LLAMA_INDEX,
            *TIKTOKEN,
            *ONNX,
            *SERVE,
        ],
        "quality": ["ruff"],
    },
)
