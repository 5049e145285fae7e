import { option, quote } from "../../base/errors.js";
import { type Duration, parseDuration, parseLifetime } from "../../base/values/measures.js";
import { audited } from "../../identity/acting.js";
import type { Scope } from "../../identity/identity.js";
import {
  type IssuedToken,
  isForeignId,
  issueCode,
  issueToken,
  listTokens,
  noSuchTokens,
  type RotatedToken,
  revokeTokens,
  rotateToken,
  type TokenView,
  validateTokenId,
} from "../../identity/tokens.js";
import * as arg from "../../operations/fields.js";
import type { FleetParts } from "../parts.js";
import { Group } from "./group.js";

/** The tokens that clients present at the front door. */
export class TokenGroup extends Group {
  /**
   * Issues a token that lets clients of the user connect to the front door. Only the result contains the token. The
   * fleet stores a hash of it.
   *
   * @param options.ttl how long the token is valid, such as `30d`; with `never`, until it is revoked. Default:
   * `identity.tokenTtl`
   * @param options.scopes the actions that the token allows. Default: `use`
   * @param options.sessionId the only session that the token is valid for. The user owns it or is a member
   * @param options.label the purpose of the token, in at most 200 characters. Lists and the audit log show it
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use that session.
   */
  async issue(
    user: string,
    options: { ttl?: Duration; scopes?: readonly Scope[]; sessionId?: string; label?: string } = {},
  ): Promise<IssuedToken> {
    const { store, finder, config } = this.parts;
    const { ttl, scopes = ["use"], sessionId, label } = options;
    const ttlMs = ttl === undefined ? config.identity.tokenTtlMs : parseLifetime(ttl, option("ttl"));
    if (sessionId !== undefined) await finder.find(sessionId, user);
    const bound = sessionId === undefined ? {} : { sessionId };
    const labelled = label === undefined ? {} : { label };
    const issued = await issueToken(store, user, ttlMs, { scopes, ...bound, ...labelled });
    await recordIssue(this.parts, issued);
    this.#warnIfEndless(issued);
    return issued;
  }

  /**
   * Issues a one-time code, with which a browser can sign in to the console as the user within five minutes. The
   * console then gets a token that has these scopes and is valid for eight hours.
   *
   * @param options.scopes the actions that the code allows. Default: `use`
   * @param options.sessionId the only session that the code is valid for. The user owns it or is a member
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use that session.
   */
  async issueCode(user: string, options: { scopes?: readonly Scope[]; sessionId?: string } = {}): Promise<IssuedToken> {
    const { store, finder } = this.parts;
    const { scopes = ["use"], sessionId } = options;
    if (sessionId !== undefined) await finder.find(sessionId, user);
    const issued = await issueCode(store, user, { scopes, ...(sessionId === undefined ? {} : { sessionId }) });
    await recordIssue(this.parts, issued, "code");
    return issued;
  }

  /**
   * Issues a token that replaces the token `id` and has the same user, scopes, session, label and lifetime. Both tokens
   * are valid for a while, so that clients can change from the old token to the new one.
   *
   * @param options.overlap how long the old token stays valid, unless it expires earlier. Default: `24h`
   * @throws FleetError `FLEET_NAME_NOT_FOUND` when the old token does not exist or has expired.
   */
  async rotate(id: string, { overlap = "24h" }: { overlap?: Duration } = {}): Promise<RotatedToken> {
    const overlapMs = parseDuration(overlap, { name: option("overlap"), orZero: true });
    const record = await this.parts.store.tokens.read(id);
    const detail = `token ${id}${labelIn(record)}`;
    const about = { type: "token.rotated", user: record?.user ?? null, detail } as const;
    const rotated = await audited(
      this.parts.events,
      about,
      async () => await rotateToken(this.parts.store, id, overlapMs, (ends) => this.parts.hosts.tellTokenEnds(ends)),
    );
    this.#warnIfEndless(rotated);
    return rotated;
  }

  #warnIfEndless({ id, expiresAt }: IssuedToken): void {
    if (expiresAt !== null) return;
    const end = `copilotfleet token revoke ${id}`;
    this.parts.warn(`Token ${id} never expires. Whoever steals it can use it until somebody runs: ${end}`);
  }

  /** Lists the tokens that were issued and not revoked, of all users or of one user. */
  async list(options: { user?: string | undefined } = {}): Promise<TokenView[]> {
    return await listTokens(this.parts.store, options.user);
  }

  /**
   * Revokes tokens by their ids, or all tokens of a user. Each host remembers the revocation, so that a person who can
   * write to Redis cannot undo it. A warning names the hosts that could not be reached.
   *
   * @param options.ignoreNotFound whether to ignore ids of tokens that do not exist
   * @throws FleetError `FLEET_NAME_NOT_FOUND` when the store has no record of a token. The others are then revoked,
   * and each host remembers the revocation of all.
   */
  async revoke(
    which: { ids: readonly string[] } | { user: string },
    { ignoreNotFound = false }: { ignoreNotFound?: boolean } = {},
  ): Promise<{ revoked: string[] }> {
    const { store, events } = this.parts;
    const revoke = async (these: typeof which) =>
      await revokeTokens(store, these, (ends) => this.parts.hosts.tellTokenEnds(ends));
    if ("user" in which) {
      const about = { type: "token.revoked", user: which.user, detail: "all tokens of the user" } as const;
      return { revoked: await audited(events, about, async () => await revoke(which)) };
    }
    // A record that cannot be read can still be revoked.
    const read = async (id: string) => await store.tokens.read(id).catch(() => undefined);
    const given = [...new Set(which.ids)];
    const records = new Map(await Promise.all(given.map(async (id) => [id, await read(id)] as const)));
    const ids = given.filter((id) => isForeignId(id) || records.get(id) !== null);
    const about = ids.map((id) => ({
      type: "token.revoked" as const,
      user: records.get(id)?.user ?? null,
      detail: `token ${id}${labelIn(records.get(id))}`,
    }));
    // Tell the hosts about all ids, because somebody with write access to Redis may hide the record of a token.
    await audited(events, about, async () => await revoke({ ids: given }));
    const notFound = given.filter((id) => !ids.includes(id));
    if (notFound.length > 0 && !ignoreNotFound) throw await noSuchTokens(store, notFound, { revoked: ids, notFound });
    return { revoked: ids };
  }

  static {
    const tokenId = (value: unknown, name: string) => validateTokenId(arg.text(value, name));
    const ids = (value: unknown, name: string) => arg.texts(value, name).map((id) => validateTokenId(id));
    Group.guard(TokenGroup.prototype, {
      issue: ["user", "options"],
      issueCode: ["user", "options"],
      rotate: [["id", tokenId], "options"],
      list: ["options"],
      revoke: [arg.exactlyOne("which", ["ids", "user"], { ids }), "options"],
    });
  }
}

/**
 * Records in the audit log that a token was issued. If that fails, deletes the token, before anybody has received it.
 */
export async function recordIssue(
  { events, store }: Pick<FleetParts, "events" | "store">,
  { id, user, scopes, sessionId, label }: IssuedToken,
  kind = "token",
): Promise<void> {
  const detail = `${kind} ${id}, scopes ${scopes.join(", ")}${labelIn({ label })}`;
  try {
    await events.record({ type: "token.issued", user, sessionId, detail });
  } catch (error) {
    await store.tokens.delete(id);
    throw error;
  }
}

/** The end of an event's detail. */
function labelIn(token: { label?: string | null } | null | undefined): string {
  return token?.label == null ? "" : `, label ${quote(token.label)}`;
}
