"""Preparation of corpora: conversion of documents and chats to token rows."""
