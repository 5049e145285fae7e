import { Flags } from "@oclif/core";
import { countOf } from "../../../base/values/text.js";
import { type MigrateResult, migrateStore } from "../../../fleet/migrate.js";
import { FleetCommand } from "../../base-command.js";

export default class StoreMigrate extends FleetCommand {
  static override summary = "Copy the recorded state to another store: from files to Redis, or back.";
  static override description = [
    "Copies servers, sessions, tokens, the limits of users, idempotency keys and the numbering of leases from the store in use to",
    "an empty one, and verifies the copy. Users are placed again. The store in use does not change. It stays in use until the",
    "configuration names the other. Run this while nobody uses the fleet; servers may keep running. The files of sessions and",
    "servers stay where they are.",
  ].join(" ");
  static override examples = [
    "<%= config.bin %> store migrate --to redis://127.0.0.1:6379/0",
    "<%= config.bin %> store migrate --to rediss://redis.example:6379/0 --json",
    "<%= config.bin %> store migrate --to file",
  ];
  static override flags = {
    to: Flags.string({
      description: '"file", or a Redis URL; storeOptions.password is its password',
      helpValue: "STORE",
      required: true,
    }),
  };

  async run(): Promise<MigrateResult> {
    const { flags } = await this.parse(StoreMigrate);
    const signal = this.interruptSignal();
    using progress = this.progress("Copying records");
    const result = await migrateStore({
      env: process.env,
      cwd: process.cwd(),
      ...this.configSource,
      to: flags.to,
      onProgress: progress.report,
      signal,
    });
    for (const warning of result.warnings) process.stderr.write(`Warning: ${warning}\n`);
    this.log(
      `Copied ${countOf(result.servers, "server")} and ${countOf(result.sessions, "session")} from ${result.from} to ${result.to}.\n` +
        `Nothing uses the copy yet. Set "store": "${result.to}" in the configuration of every host, or COPILOTFLEET_STORE.`,
    );
    return result;
  }
}
