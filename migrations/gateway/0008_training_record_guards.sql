-- What a job was trained on is written when it is made and completed once, when its files were validated; then it stays.
CREATE TRIGGER job_sources_final BEFORE UPDATE ON job_sources
WHEN NEW.job_id <> OLD.job_id OR NEW.role <> OLD.role OR NEW.position <> OLD.position OR NEW.file_id <> OLD.file_id
  OR NEW.datanet_id IS NOT OLD.datanet_id OR NEW.version IS NOT OLD.version OR NEW.root IS NOT OLD.root OR NEW.weight <> OLD.weight
  OR (OLD.digest IS NOT NULL AND (NEW.digest IS NOT OLD.digest OR NEW.examples IS NOT OLD.examples))
BEGIN
  SELECT RAISE(ABORT, 'what a job was trained on stays on record');
END;
--> statement-breakpoint
CREATE TRIGGER adapter_marks_final BEFORE UPDATE ON adapter_marks
BEGIN
  SELECT RAISE(ABORT, 'a mark stays on record');
END;
--> statement-breakpoint
-- Whoever gave access, when and why: a decision is followed by another, never taken out.
CREATE TRIGGER access_requests_kept BEFORE DELETE ON access_requests
BEGIN
  SELECT RAISE(ABORT, 'a request for access stays on record');
END;
--> statement-breakpoint
CREATE TRIGGER datanets_kept BEFORE DELETE ON datanets WHEN OLD.version > 0
BEGIN
  SELECT RAISE(ABORT, 'a published Datanet stays on record');
END;
