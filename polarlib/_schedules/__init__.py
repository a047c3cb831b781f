"""Schedules: their steps, images and targets, certificates, files and code."""
