"""What methods share: normalisation, iteration, the driver, evidence, rules of derivatives."""
