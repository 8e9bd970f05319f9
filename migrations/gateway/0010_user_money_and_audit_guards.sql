-- The sums of a user follow the reservations of all the user's keys, as those of a key follow its own.
UPDATE users SET
  spent_micros = coalesce((SELECT sum(spent_micros) FROM keys WHERE keys.user_id = users.id), 0),
  reserved_micros = coalesce((SELECT sum(reserved_micros) FROM keys WHERE keys.user_id = users.id), 0);
--> statement-breakpoint
CREATE TRIGGER reservations_opened_user AFTER INSERT ON reservations WHEN NEW.state = 'open'
BEGIN
  UPDATE users SET reserved_micros = reserved_micros + NEW.amount_micros WHERE id = (SELECT user_id FROM keys WHERE id = NEW.key_id);
END;
--> statement-breakpoint
CREATE TRIGGER reservations_closed_user AFTER UPDATE OF state ON reservations WHEN OLD.state = 'open' AND NEW.state <> 'open'
BEGIN
  UPDATE users SET reserved_micros = reserved_micros - OLD.amount_micros WHERE id = (SELECT user_id FROM keys WHERE id = OLD.key_id);
END;
--> statement-breakpoint
CREATE TRIGGER reservations_posted_user AFTER UPDATE OF state ON reservations WHEN OLD.state <> 'posted' AND NEW.state = 'posted'
BEGIN
  UPDATE users SET spent_micros = spent_micros + NEW.posted_micros WHERE id = (SELECT user_id FROM keys WHERE id = NEW.key_id);
END;
--> statement-breakpoint
CREATE TRIGGER users_money BEFORE UPDATE OF spent_micros, reserved_micros ON users WHEN NEW.spent_micros < 0 OR NEW.reserved_micros < 0
BEGIN
  SELECT RAISE(ABORT, 'users_money: a sum cannot be below zero');
END;
--> statement-breakpoint
-- What a key spends counts for its user, so neither may it leave its user nor its row while there are sums.
CREATE TRIGGER keys_holder BEFORE UPDATE OF user_id ON keys WHEN NEW.user_id IS NOT OLD.user_id
BEGIN
  SELECT RAISE(ABORT, 'a key stays with its user');
END;
--> statement-breakpoint
-- The audit log: rows that need not stay for ever may go once they are old, while an open act `audit.prune` says up to when.
DROP TRIGGER audit_kept;
--> statement-breakpoint
DROP TRIGGER audit_final;
--> statement-breakpoint
UPDATE audit_log SET kept = 0 WHERE status BETWEEN 400 AND 499 OR action IN
  ('session.start', 'session.oidc', 'session.end', 'account.update', 'account.end_sessions', 'adapter.place',
   'contribution.create', 'contribution.delete', 'datanet.review');
--> statement-breakpoint
CREATE TRIGGER audit_kept BEFORE DELETE ON audit_log WHEN OLD.kept <> 0 OR NOT EXISTS (
  SELECT 1 FROM (SELECT status, detail FROM audit_log WHERE action = 'audit.prune' ORDER BY at DESC, seq DESC LIMIT 1) prune
  WHERE prune.status IS NULL AND OLD.at < json_extract(prune.detail, '$.before'))
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
--> statement-breakpoint
-- An act gets its outcome once; only then can it turn out that it was refused and need not stay for ever.
CREATE TRIGGER audit_final BEFORE UPDATE ON audit_log
WHEN OLD.status IS NOT NULL OR NEW.status IS NULL OR NEW.seq <> OLD.seq OR NEW.at <> OLD.at OR NEW.action <> OLD.action
  OR NEW.user_id IS NOT OLD.user_id OR NEW.key_id IS NOT OLD.key_id OR NEW.request_id <> OLD.request_id
  OR NEW.address IS NOT OLD.address OR (NEW.kept <> OLD.kept AND (NEW.kept <> 0 OR NEW.status NOT BETWEEN 400 AND 499))
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
