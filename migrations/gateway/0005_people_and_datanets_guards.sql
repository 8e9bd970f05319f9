-- What files, jobs and evaluations belonged to, they belong to still.
UPDATE files SET owner = key_id WHERE owner = '';
--> statement-breakpoint
UPDATE fine_tuning_jobs SET owner = key_id WHERE owner = '';
--> statement-breakpoint
UPDATE evaluations SET owner = key_id WHERE owner = '';
--> statement-breakpoint
UPDATE alias_versions SET owner = key_id WHERE owner = '';
--> statement-breakpoint
-- The audit log only grows; an act gets its outcome once.
CREATE TRIGGER audit_kept BEFORE DELETE ON audit_log
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
--> statement-breakpoint
CREATE TRIGGER audit_final BEFORE UPDATE ON audit_log
WHEN OLD.status IS NOT NULL OR NEW.status IS NULL OR NEW.seq <> OLD.seq OR NEW.at <> OLD.at OR NEW.action <> OLD.action
  OR NEW.user_id IS NOT OLD.user_id OR NEW.key_id IS NOT OLD.key_id OR NEW.request_id <> OLD.request_id
  OR NEW.address IS NOT OLD.address
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
--> statement-breakpoint
-- A row of data is written once. Only its content can go, when it is withdrawn; and what was never in a version may be read in again.
CREATE TRIGGER datanet_rows_kept BEFORE DELETE ON datanet_rows WHEN OLD.added_in IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'rows of a published version stay on record');
END;
--> statement-breakpoint
CREATE TRIGGER datanet_rows_written_once
BEFORE UPDATE OF datanet_id, contribution_id, contributor, content, content_hash, generated_by, entry, leaf_hash, created_at ON datanet_rows
WHEN NEW.datanet_id <> OLD.datanet_id OR NEW.contribution_id <> OLD.contribution_id OR NEW.contributor <> OLD.contributor
  OR NEW.content_hash <> OLD.content_hash OR NEW.generated_by IS NOT OLD.generated_by OR NEW.entry <> OLD.entry
  OR NEW.leaf_hash <> OLD.leaf_hash OR NEW.created_at <> OLD.created_at
  OR (NEW.content IS NOT OLD.content AND (NEW.content IS NOT NULL OR NEW.state <> 'withdrawn'))
BEGIN
  SELECT RAISE(ABORT, 'a row of a Datanet is written once');
END;
--> statement-breakpoint
CREATE TRIGGER datanet_rows_added BEFORE UPDATE OF added_in ON datanet_rows
WHEN NEW.added_in IS NOT OLD.added_in AND (
  (OLD.added_in IS NOT NULL OR NEW.state <> 'approved')
  AND NOT (NEW.added_in IS NULL)
  OR NOT EXISTS (SELECT 1 FROM datanet_versions v WHERE v.datanet_id = NEW.datanet_id AND v.state = 'building'
    AND v.number = coalesce(NEW.added_in, OLD.added_in)))
BEGIN
  SELECT RAISE(ABORT, 'a published version cannot change');
END;
--> statement-breakpoint
CREATE TRIGGER datanet_rows_removed BEFORE UPDATE OF removed_in ON datanet_rows
WHEN NEW.removed_in IS NOT OLD.removed_in AND (
  (NEW.removed_in IS NOT NULL AND (OLD.removed_in IS NOT NULL OR OLD.added_in IS NULL OR NEW.removed_in <= OLD.added_in))
  OR NOT EXISTS (SELECT 1 FROM datanet_versions v WHERE v.datanet_id = NEW.datanet_id AND v.state = 'building'
    AND v.number = coalesce(NEW.removed_in, OLD.removed_in)))
BEGIN
  SELECT RAISE(ABORT, 'a published version cannot change');
END;
--> statement-breakpoint
CREATE TRIGGER datanet_versions_kept BEFORE DELETE ON datanet_versions WHEN OLD.state = 'published'
BEGIN
  SELECT RAISE(ABORT, 'a published version cannot change');
END;
--> statement-breakpoint
CREATE TRIGGER datanet_versions_final BEFORE UPDATE ON datanet_versions WHEN OLD.state = 'published'
BEGIN
  SELECT RAISE(ABORT, 'a published version cannot change');
END;
--> statement-breakpoint
CREATE TRIGGER licence_acceptances_kept BEFORE DELETE ON licence_acceptances
BEGIN
  SELECT RAISE(ABORT, 'an acceptance stays on record');
END;
--> statement-breakpoint
CREATE TRIGGER licence_acceptances_final BEFORE UPDATE ON licence_acceptances
BEGIN
  SELECT RAISE(ABORT, 'an acceptance stays on record');
END;
--> statement-breakpoint
CREATE TRIGGER job_sources_kept BEFORE DELETE ON job_sources
BEGIN
  SELECT RAISE(ABORT, 'what a job was trained on stays on record');
END;
--> statement-breakpoint
CREATE TRIGGER adapter_marks_kept BEFORE DELETE ON adapter_marks
BEGIN
  SELECT RAISE(ABORT, 'a mark stays on record');
END;
--> statement-breakpoint
-- Full text of rows (rowid = datanet_rows.seq; `net` holds the Datanet's number as one word) and of Datanets (rowid = datanets.seq).
CREATE VIRTUAL TABLE datanet_rows_text USING fts5(net, body, content='', contentless_delete=1, tokenize='unicode61 remove_diacritics 2');
--> statement-breakpoint
CREATE VIRTUAL TABLE datanets_text USING fts5(name, summary, description, tags, content='', contentless_delete=1, tokenize='unicode61 remove_diacritics 2');
