"""Durable jobs: scores of many items, through restarts of everything. The table is the truth, Celery the courier."""
