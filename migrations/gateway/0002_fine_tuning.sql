CREATE TABLE `checkpoint_permissions` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`checkpoint` text NOT NULL,
	`project_id` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `checkpoint_permissions_id_unique` ON `checkpoint_permissions` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `permissions_once` ON `checkpoint_permissions` (`checkpoint`,`project_id`);--> statement-breakpoint
CREATE TABLE `files` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`key_id` text NOT NULL,
	`filename` text NOT NULL,
	`purpose` text NOT NULL,
	`bytes` integer NOT NULL,
	`sha256` text NOT NULL,
	`format` text,
	`columns` text,
	`created_at` integer NOT NULL,
	`expires_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `files_id_unique` ON `files` (`id`);--> statement-breakpoint
CREATE INDEX `files_key` ON `files` (`key_id`,`seq`);--> statement-breakpoint
CREATE INDEX `files_expiry` ON `files` (`expires_at`);--> statement-breakpoint
CREATE TABLE `fine_tuning_checkpoints` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`job_id` text NOT NULL,
	`step` integer NOT NULL,
	`adapter` text NOT NULL,
	`digest` text NOT NULL,
	`metrics` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `fine_tuning_checkpoints_id_unique` ON `fine_tuning_checkpoints` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `checkpoints_once` ON `fine_tuning_checkpoints` (`job_id`,`step`);--> statement-breakpoint
CREATE INDEX `checkpoints_adapter` ON `fine_tuning_checkpoints` (`adapter`);--> statement-breakpoint
CREATE TABLE `fine_tuning_events` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`job_id` text NOT NULL,
	`dedupe` text NOT NULL,
	`level` text NOT NULL,
	`type` text NOT NULL,
	`message` text NOT NULL,
	`data` text,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `fine_tuning_events_id_unique` ON `fine_tuning_events` (`id`);--> statement-breakpoint
CREATE INDEX `events_job` ON `fine_tuning_events` (`job_id`,`seq`);--> statement-breakpoint
CREATE UNIQUE INDEX `events_once` ON `fine_tuning_events` (`job_id`,`dedupe`);--> statement-breakpoint
CREATE TABLE `fine_tuning_jobs` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`key_id` text NOT NULL,
	`caller_hash` text NOT NULL,
	`status` text NOT NULL,
	`wanted` text DEFAULT 'run' NOT NULL,
	`model` text NOT NULL,
	`adapter` text NOT NULL,
	`training_file` text NOT NULL,
	`validation_file` text,
	`suffix` text,
	`seed` integer NOT NULL,
	`method` text NOT NULL,
	`extension` text NOT NULL,
	`metadata` text,
	`recipe` text,
	`estimate` text,
	`dataset` text,
	`validation` text,
	`daemon_url` text,
	`run_created_at` text,
	`last_event` integer DEFAULT 0 NOT NULL,
	`progress` text,
	`estimated_finish` integer,
	`trained_tokens` integer,
	`fine_tuned_model` text,
	`result_file` text,
	`error` text,
	`created_at` integer NOT NULL,
	`finished_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `fine_tuning_jobs_id_unique` ON `fine_tuning_jobs` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `fine_tuning_jobs_adapter_unique` ON `fine_tuning_jobs` (`adapter`);--> statement-breakpoint
CREATE INDEX `jobs_key` ON `fine_tuning_jobs` (`key_id`,`seq`);--> statement-breakpoint
CREATE INDEX `jobs_status` ON `fine_tuning_jobs` (`status`);