"""Shared parts of the methods: normalisation, iteration, driver, checks, rules of derivatives."""
