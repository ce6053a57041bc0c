-- What a user would write, alone: one row counts the stock, so every sale waits for the commit of the one before.
UPDATE stock SET n = n - 1 WHERE id = 1 AND n > 0;
