import { Args, Flags } from "@oclif/core";
import { parseDuration } from "../config/duration.js";
import { FleetError, quote } from "../errors.js";

/** `--user U`, checked by the fleet itself, so that the library refuses what the command refuses. */
export const userFlag = Flags.string({ description: "id of the user", helpValue: "USER" });

export const requiredUserFlag = Flags.string({ description: "id of the user", helpValue: "USER", required: true });

export const sessionArg = Args.string({ description: "id of the session", required: true });

/** A duration such as `30s`, as milliseconds. */
export function durationFlag(name: string, description: string) {
  return Flags.custom<number>({
    description,
    helpValue: "DURATION",
    parse: async (value) => parseDuration(value, { name: `--${name}` }),
  })();
}

/** A whole number within bounds, written in plain digits. */
export function integerFlag(name: string, description: string, bounds: { min: number; max: number }, char?: "n") {
  return Flags.custom<number>({
    description,
    helpValue: "N",
    ...(char === undefined ? {} : { char }),
    parse: async (value) => {
      const number = /^\d{1,9}$/.test(value) ? Number(value) : Number.NaN;
      if (number >= bounds.min && number <= bounds.max) return number;
      throw new FleetError(
        "FLEET_USAGE_INVALID",
        `--${name} ${quote(value)} is not allowed: a whole number from ${bounds.min} to ${bounds.max} is.`,
      );
    },
  })();
}

export function usage(message: string, suggestions: string[] = []): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", message, { suggestions });
}
