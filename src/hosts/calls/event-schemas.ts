import * as v from "valibot";
import type { EventPage } from "../../accounts/audit/query.js";
import type { Verified } from "../../accounts/audit/verify.js";
import type { Actor, EventType, FleetEvent, Via } from "../../base/event.js";
import { LONGEST_TIMER_MS } from "../../base/values/measures.js";
import { object, type Schema } from "./schemas.js";

/* The schemas of the calls about the audit log. As in `schemas.ts`, they ignore unknown fields. */

const string = v.string("a text");
const number = v.number("a number");
const flag = v.boolean("true or false");
const orNull = v.nullable(string);
/** Accepts any text, because a newer version may use words that this version does not know. */
const word = <T extends string>() => v.custom<T>((value) => typeof value === "string", "a word");
const whole = (max: number) => {
  const allowed = `a whole number from 0 to ${max}`;
  return v.pipe(number, v.integer(allowed), v.minValue(0, allowed), v.maxValue(max, allowed));
};

const MOST_EVENTS = 10_000;

export const eventQuery = {
  after: v.optional(whole(Number.MAX_SAFE_INTEGER)),
  sinceMs: v.optional(number),
  user: v.optional(string),
  types: v.optional(v.array(word<EventType>())),
  limit: whole(MOST_EVENTS),
  waitMs: v.optional(whole(LONGEST_TIMER_MS)),
};

export const actor: Schema<Actor> = object({ user: orNull, tokenId: orNull, via: word<Via>(), os: orNull });

const event: Schema<FleetEvent> = object({
  id: string,
  seq: number,
  at: string,
  type: word<EventType>(),
  actor,
  user: orNull,
  sessionId: orNull,
  serverId: orNull,
  host: orNull,
  outcome: string,
  reason: orNull,
  detail: orNull,
});

export const eventPage: Schema<EventPage> = object({ events: v.array(event), next: number, hasMore: flag });

export const verified: Schema<Verified> = object({
  events: number,
  brokenAt: v.nullable(object({ seq: number, problem: string })),
});
