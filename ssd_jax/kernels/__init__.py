"""Faster versions of operations for one platform, each behind one public function."""
