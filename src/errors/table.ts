import { CONFIGURATION_ERRORS } from "./configuration.js";
import type { ErrorEntry } from "./entry.js";
import { INPUT_ERRORS } from "./input.js";
import { REFUSED_ERRORS } from "./refused.js";
import { UNAVAILABLE_ERRORS } from "./unavailable.js";

/**
 * Every error of the fleet. A code is part of the contract because scripts match on it: it is never renamed. docs/errors.md
 * and `copilotfleet explain` come from this table.
 */
export const ERRORS = {
  ...INPUT_ERRORS,
  ...CONFIGURATION_ERRORS,
  ...REFUSED_ERRORS,
  ...UNAVAILABLE_ERRORS,
} as const satisfies Record<string, ErrorEntry>;

export type FleetErrorCode = keyof typeof ERRORS;
