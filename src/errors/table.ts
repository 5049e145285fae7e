import { CONFIGURATION_ERRORS } from "./configuration.js";
import { EVENT_ERRORS } from "./events.js";
import { INPUT_ERRORS } from "./input.js";
import { CONFLICT_ERRORS, NOT_FOUND_ERRORS } from "./refused.js";
import { CUT_ERRORS, EXHAUSTED_ERRORS, INTERNAL_ERRORS, UNAVAILABLE_ERRORS } from "./unavailable.js";

/**
 * Every error of the fleet. A code is part of the contract because scripts match on it: it is never renamed.
 * docs/errors.md and `copilotfleet explain` come from this table.
 */
export const ERRORS = {
  ...INTERNAL_ERRORS,
  ...INPUT_ERRORS,
  ...CONFIGURATION_ERRORS,
  ...NOT_FOUND_ERRORS,
  ...CONFLICT_ERRORS,
  ...EXHAUSTED_ERRORS,
  ...UNAVAILABLE_ERRORS,
  ...EVENT_ERRORS,
  ...CUT_ERRORS,
};

export type FleetErrorCode = keyof typeof ERRORS;
