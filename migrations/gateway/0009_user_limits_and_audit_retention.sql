DROP INDEX `audit_action`;--> statement-breakpoint
DROP INDEX `audit_user`;--> statement-breakpoint
DROP INDEX `audit_object`;--> statement-breakpoint
ALTER TABLE `audit_log` ADD `kept` integer DEFAULT true NOT NULL;--> statement-breakpoint
CREATE INDEX `audit_at` ON `audit_log` (`at`);--> statement-breakpoint
CREATE INDEX `audit_key` ON `audit_log` (`key_id`,`at`);--> statement-breakpoint
CREATE INDEX `audit_prunable` ON `audit_log` (`at`) WHERE kept = 0;--> statement-breakpoint
CREATE INDEX `audit_action` ON `audit_log` (`action`,`at`);--> statement-breakpoint
CREATE INDEX `audit_user` ON `audit_log` (`user_id`,`at`);--> statement-breakpoint
CREATE INDEX `audit_object` ON `audit_log` (`object`,`at`);--> statement-breakpoint
ALTER TABLE `users` ADD `requests_per_minute` integer;--> statement-breakpoint
ALTER TABLE `users` ADD `tokens_per_minute` integer;--> statement-breakpoint
ALTER TABLE `users` ADD `concurrency` integer;--> statement-breakpoint
ALTER TABLE `users` ADD `budget_micros` integer;--> statement-breakpoint
ALTER TABLE `users` ADD `spent_micros` integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE `users` ADD `reserved_micros` integer DEFAULT 0 NOT NULL;