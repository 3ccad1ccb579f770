UPDATE jobs SET created_s = 1e999, version = -1, error_code = 9223372036854775807;
