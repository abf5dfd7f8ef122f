"""What is claimed about speed, as commands anyone can run: ``python -m benchmarks roofline|peers|scaling|gpu``.

See docs/benchmarks.md for what each figure means.
"""
