import { quote } from "../base/errors.js";
import { readUser, userFault } from "../base/values/names.js";
import { sha256 } from "../base/values/text.js";
import type { IssuerConfig } from "../config/schema.js";
import { type Identity, SCOPES, type Scope } from "./identity.js";

/** The claims of a token whose signature is good. */
export type Claims = Readonly<Record<string, unknown>>;

/** The error for a token that is refused. The message states why, for the operator's log. */
export class Refused extends Error {}

/** The longest lifetime of an accepted token, in milliseconds. A revocation is remembered for this time. */
export const LONGEST_LIFE_MS = 30 * 24 * 60 * 60_000;
/** Tokens that are also for other services put this prefix before the names of the fleet's scopes. */
const PREFIX = "copilotfleet:";
const MOST_GROUPS = 1_000;

/**
 * The identity of the user whom a verified token names. Uses the texts of claims unchanged.
 *
 * @param signed the part of the token that the signature covers
 * @throws Refused
 */
export function identityOf(claims: Claims, issuer: IssuerConfig, signed: string, nowMs: number): Identity {
  for (const [name, wanted] of Object.entries(issuer.claims)) {
    const found = claimOf(claims, name);
    if (found !== wanted) throw new Refused(`the claim ${quote(name)} is ${show(found)}, and not ${quote(wanted)}`);
  }
  return {
    user: userOf(claims, issuer.user),
    scopes: scopesOf(claims, issuer.scopes),
    groups: groupsOf(claims, issuer.groups),
    tokenId: tokenIdOf(claims, signed),
    expiresAt: endOf(claims, nowMs),
    via: "jwt",
  };
}

function claimOf(claims: Claims, name: string): unknown {
  // Without this check, a name such as "__proto__" would find a property that every object has.
  return Object.hasOwn(claims, name) ? claims[name] : undefined;
}

function show(value: unknown): string {
  if (value === undefined) return "missing";
  if (typeof value === "string") return quote(value);
  return Array.isArray(value) ? "a list" : value === null ? "null" : `a value of type ${typeof value}`;
}

function userOf(claims: Claims, name: string): string {
  const value = claimOf(claims, name);
  const refuse = (why: string) => new Refused(`the claim ${quote(name)} is ${why}, so it is not the id of a user`);
  if (typeof value !== "string") throw refuse(show(value));
  const user = readUser(value);
  if (user === null) throw refuse(`${quote(value)}, which ${userFault(value)}`);
  if (user !== value) throw refuse(`${quote(value)}, which is not in Unicode normal form C`);
  return user;
}

function endOf({ exp, iat }: Claims, nowMs: number): string {
  const endMs = typeof exp === "number" ? exp * 1000 : Number.NaN;
  if (!(endMs > nowMs)) throw new Refused(`it expired at ${quote(exp)}`);
  // Measure the lifetime from when the token was issued. A revocation is remembered only for `LONGEST_LIFE_MS`, so no
  // token may be valid for longer.
  const sinceMs = Math.min(nowMs, typeof iat === "number" ? iat * 1000 : nowMs);
  if (endMs > sinceMs + LONGEST_LIFE_MS) throw new Refused("it is valid for more than 30 days");
  return new Date(endMs).toISOString();
}

function groupsOf(claims: Claims, name: string | null): readonly string[] {
  const value = name === null ? undefined : claimOf(claims, name);
  if (value === undefined) return [];
  const groups: unknown[] = Array.isArray(value) ? value : [value];
  const isGood = groups.length <= MOST_GROUPS && groups.every((group) => typeof group === "string");
  if (!isGood) throw new Refused(`the claim ${quote(name)} is not a list of at most ${MOST_GROUPS} texts`);
  return groups as string[];
}

/** A token without the claim has the scope `use`. A token with the claim has only the scopes that the claim names. */
function scopesOf(claims: Claims, name: string | null): readonly Scope[] {
  const value = name === null ? undefined : claimOf(claims, name);
  if (value === undefined) return ["use"];
  const words: unknown[] = typeof value === "string" ? value.split(" ") : Array.isArray(value) ? value : [];
  const scopes = SCOPES.filter((scope) => words.includes(scope) || words.includes(`${PREFIX}${scope}`));
  if (scopes.length === 0) throw new Refused(`the claim ${quote(name)} names none of ${SCOPES.join(", ")}`);
  return scopes;
}

/**
 * The token's own id. If the token has none, this is a digest of the part that is signed, because the signature itself
 * may have several spellings. An id that could confuse a reader of a log is also replaced with a digest.
 */
function tokenIdOf({ jti }: Claims, signed: string): string {
  if (typeof jti === "string" && /^[\x21-\x7e]{1,128}$/.test(jti)) return `jwt:${jti}`;
  return `jwt:${sha256(jti === undefined ? signed : JSON.stringify(jti)).slice(0, 32)}`;
}
