"""What the command line says of itself besides its options."""

__all__ = ["BEAM", "COMMANDS", "EPILOG", "EXAMPLES"]

COMMANDS = {
    "embed": "one vector for each text",
    "classify": "a label and its score for each text",
    "tokenize": "token ids and counts for each text, without running the model",
    "featurize": "any of these together, in one pass over the texts",
    "inspect": "look into an output folder",
    "demo": "classify the example reviews with the tiny model that comes with distilbeam",
}

EPILOG = """\
examples:
  distilbeam embed --model sentence-transformers/msmarco-distilbert-base-v4 \\
      --input 'news/*.parquet' --text title body --output vectors
  distilbeam classify --model ./sst2 --input reviews.jsonl.gz --text review --output labels
  distilbeam inspect labels

`distilbeam COMMAND --help` tells the options of a command.
"""

EXAMPLES = {
    "embed": """\
examples:
  distilbeam embed --model ./minilm --input news.parquet --text title body --output vectors
  distilbeam embed --model ./minilm --input 's3://lake/news/**/*.parquet' --output s3://lake/vectors \\
      --normalize --embedding-dtype float16 --if-exists resume
""",
    "classify": """\
examples:
  distilbeam classify --model ./sst2 --input reviews.csv --text review --keep id --output labels
  distilbeam classify --model ./sst2 --input reviews.csv --text review --output labels --scores
""",
    "tokenize": """\
example:
  distilbeam tokenize --model ./sst2 --input books/*.txt --output tokens --max-length 128
""",
    "featurize": """\
example:
  distilbeam featurize --model ./sst2 --input reviews.jsonl --text review --output features \\
      --features embedding label score
""",
    "inspect": """\
examples:
  distilbeam inspect labels
  distilbeam inspect s3://lake/vectors --json | jq .rows
""",
    "demo": """\
example:
  distilbeam demo --output demo-output
""",
}

BEAM = """
Options of Apache Beam go along and are handed on, such as --runner FlinkRunner or --temp_location gs://bucket/tmp;
those that only a job server knows come last, after `--`. Without --runner the job runs in this process.
"""
