DROP INDEX `datanet_rows_state`;--> statement-breakpoint
ALTER TABLE `datanet_rows` ADD `language` text;--> statement-breakpoint
CREATE INDEX `datanet_rows_state` ON `datanet_rows` (`datanet_id`,`state`,`seq`,`score`,`near_duplicate_of`,`size`,`language`,`generated_by`,`added_in`,`removed_in`);--> statement-breakpoint
CREATE INDEX `datanets_browse` ON `datanets` (`seq`,`version`,`visibility`,`state`,`kind`,`licence`,`owner_user`,`owner_organization`);