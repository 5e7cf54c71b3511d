"""A device kit: a folder of networks and one script that measures them where autocompress cannot run.

kit/kit.json          every network with its SHA-256, precision and place; how to measure
kit/models/*.onnx     the networks; each carries its description in the file's metadata
kit/measure_kit.py    needs numpy and a runtime, and nothing else
kit/results.jsonl     what the script found, one line a network
kit/device.json       what the device is
kit/optimized/*.onnx  the networks as the runtime rewrote them
"""
