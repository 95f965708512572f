"""Checkpoints and data sets in and out: conversion, loading, export, cards and publishing."""
