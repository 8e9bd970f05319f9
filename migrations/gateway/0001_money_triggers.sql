-- The sums of a key follow its reservations; no code adds them up.
CREATE TRIGGER reservations_opened AFTER INSERT ON reservations WHEN NEW.state = 'open'
BEGIN
  UPDATE keys SET reserved_micros = reserved_micros + NEW.amount_micros WHERE id = NEW.key_id;
END;
--> statement-breakpoint
CREATE TRIGGER reservations_closed AFTER UPDATE OF state ON reservations WHEN OLD.state = 'open' AND NEW.state <> 'open'
BEGIN
  UPDATE keys SET reserved_micros = reserved_micros - OLD.amount_micros WHERE id = OLD.key_id;
END;
--> statement-breakpoint
CREATE TRIGGER reservations_posted AFTER UPDATE OF state ON reservations WHEN OLD.state <> 'posted' AND NEW.state = 'posted'
BEGIN
  UPDATE keys SET spent_micros = spent_micros + NEW.posted_micros WHERE id = NEW.key_id;
  INSERT INTO usage_daily (key_id, day, model, requests, prompt_tokens, completion_tokens, cost_micros)
    VALUES (NEW.key_id, date(NEW.settled_at / 1000, 'unixepoch'), coalesce(NEW.model, ''), 1,
      coalesce(NEW.prompt_tokens, 0), coalesce(NEW.completion_tokens, 0), NEW.posted_micros)
    ON CONFLICT (key_id, day, model) DO UPDATE SET requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
      completion_tokens = completion_tokens + excluded.completion_tokens, cost_micros = cost_micros + excluded.cost_micros;
END;
--> statement-breakpoint
CREATE TRIGGER reservations_final BEFORE UPDATE OF state ON reservations WHEN OLD.state IN ('posted', 'void') AND NEW.state <> OLD.state
BEGIN
  SELECT RAISE(ABORT, 'a settled reservation stays settled');
END;
