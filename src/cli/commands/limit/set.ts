import type { LimitValue, LimitView } from "../../../accounts/limits.js";
import { USER_LIMITS, type UserLimit } from "../../../base/user-limits.js";
import type { Fleet } from "../../../fleet/fleet.js";
import { limit } from "../../../operations/fields.js";
import { FleetCommand } from "../../base-command.js";
import { namedUserFlag, parsedFlag, usage } from "../../flags/flags.js";
import { renderLimits } from "../../render/results.js";

/** A flag for a limit: a whole number, `unlimited` or `default`. */
function limitFlag(flag: string, description: string) {
  const parse = (text: string, name: string) => limit(/^\d+$/.test(text) ? Number(text) : text, name);
  return parsedFlag(flag, description, "N", parse);
}

const limitFlags = {
  "turns-per-minute": limitFlag("turns-per-minute", "turns that begin within a minute"),
  "concurrent-turns": limitFlag("concurrent-turns", "turns that run at once"),
  sessions: limitFlag("sessions", "sessions in all states"),
  connections: limitFlag("connections", "open connections to front doors"),
  "tokens-per-day": limitFlag("tokens-per-day", "model tokens in a day of UTC"),
  "tokens-per-month": limitFlag("tokens-per-month", "model tokens in a month of UTC"),
};

export default class LimitSet extends FleetCommand {
  static override summary = "Set limits of one user. They replace those of the configuration.";
  static override description =
    "Limits that are not given stay as they are. N is a whole number, unlimited, or default for the limit that the " +
    "configuration gives the user. Turns that run go on.";
  static override examples = [
    "<%= config.bin %> limit set --user alice --tokens-per-day 100000",
    "<%= config.bin %> limit set --user alice --turns-per-minute 10 --concurrent-turns unlimited",
  ];
  static override flags = { user: namedUserFlag, ...limitFlags };

  async run(): Promise<LimitView> {
    const { flags } = await this.parse(LimitSet);
    const limits = limitsIn(flags);
    if (Object.keys(limits).length === 0) {
      throw usage("No limit is given.", [
        "copilotfleet limit set --user USER --turns-per-minute 10",
        "copilotfleet limit set --help",
      ]);
    }
    const set = async (fleet: Fleet) => await fleet.limits.set(flags.user, limits);
    return await this.act("Setting the limits", set, renderLimits);
  }
}

/** The limits that the flags give, by their names in the configuration. */
function limitsIn(flags: Readonly<Record<string, unknown>>): Partial<Record<UserLimit, LimitValue>> {
  const flagOf = (limit: UserLimit) => limit.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const given = USER_LIMITS.map((limit) => [limit, flags[flagOf(limit)]]).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given) as Partial<Record<UserLimit, LimitValue>>;
}
