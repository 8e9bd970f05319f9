CREATE TABLE `fine_tuning_leases` (
	`job_id` text PRIMARY KEY NOT NULL,
	`holder` text NOT NULL,
	`until` integer NOT NULL,
	`calls` integer DEFAULT 0 NOT NULL
);
