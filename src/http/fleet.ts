import type { apiFleet } from "../fleet/groups/doors.js";
import type { SendOptions } from "../hosts/options.js";

export type SessionEvent = Parameters<NonNullable<SendOptions["onEvent"]>>[0];

/**
 * The methods of the library that the routes of the HTTP API call. These methods, and not the routes, contain all
 * rules.
 */
export type ApiFleet = ReturnType<typeof apiFleet>;
