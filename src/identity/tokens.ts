import { randomBytes } from "node:crypto";
import { FleetError, quote, type Suggestion } from "../base/errors.js";
import { hashToken, isSameHash, isTokenId, type TokenEnd, type TokenRecord } from "../base/token.js";
import { nearestOf } from "../base/values/names.js";
import { compareText, sha256 } from "../base/values/text.js";
import { isDamaged } from "../store/failures.js";
import type { Store } from "../store/store.js";
import type { TokenTable } from "../store/tokens.js";
import { LONGEST_LIFE_MS } from "./claims.js";
import { type HostIdentity, type Identity, remember, SCOPES, type Scope } from "./identity.js";

/** `cft_<id>_<secret>`. The store keeps a hash of the whole token. */
const TOKEN = /^cft_([a-z0-9]{16})_[A-Za-z0-9_-]{43}$/;
const ID_BYTES = 8;
const SECRET_BYTES = 32;
/**
 * If a token does not exist, `verifyToken` compares with this hash, so that the time of a check does not show whether
 * the token exists.
 */
const NO_HASH = "0".repeat(64);

/** How often an open connection is recorded as a use of its token, in milliseconds. */
const CONNECTED_MS = 3_600_000;

/** A token without its secret, which only `tokens.issue` and `tokens.rotate` return. Times are ISO 8601 in UTC. */
export interface TokenView {
  id: string;
  user: string;
  createdAt: string;
  expiresAt: string | null;
  expired: boolean;
  /**
   * When a client last connected with the token, or was still connected. May be up to an hour too early. Null if never.
   */
  lastUsedAt: string | null;
  scopes: Scope[];
  /** The only session that the token is valid for; null: all sessions of the user. */
  sessionId: string | null;
  /** The purpose of the token, as its issuer wrote it; null if the issuer wrote nothing. */
  label: string | null;
}

export interface IssuedToken extends Pick<TokenView, "id" | "user" | "expiresAt" | "scopes" | "sessionId" | "label"> {
  /** The token itself. Nobody can read it again later. */
  token: string;
}

/** Precedes a host's name in the field `user` of a host's token. User ids have no colons, so none begins with it. */
const HOST_PREFIX = "host:";

type Kind = Pick<
  TokenRecord,
  "role" | "door" | "passing" | "lease" | "shown" | "scopes" | "sessionId" | "label" | "relayed"
>;

/**
 * Makes a token for a user.
 *
 * @param ttlMs how long the token is valid, in milliseconds; null: until it is revoked
 */
export async function issueToken(
  store: Store,
  user: string,
  ttlMs: number | null,
  kind: Kind = {},
): Promise<IssuedToken> {
  const id = randomBytes(ID_BYTES).toString("hex");
  const token = `cft_${id}_${randomBytes(SECRET_BYTES).toString("base64url")}`;
  const now = await store.now();
  const expiresAt = ttlMs === null ? null : new Date(now + ttlMs).toISOString();
  const record = { ...kind, id, user, sha256: hashToken(token), createdAt: new Date(now).toISOString(), expiresAt };
  await store.tokens.create(record);
  const { sessionId = null, label = null } = kind;
  return { token, id, user, expiresAt, scopes: scopesOf(record), sessionId, label };
}

/** Makes a token with which host `from` can connect to the front door of host `to`, once within a minute. */
export async function issueHostToken(store: Store, from: string, to: string): Promise<IssuedToken> {
  return await issueToken(store, `${HOST_PREFIX}${from}`, PASSING_MS, { role: "host", door: to, passing: true });
}

/** Makes a token with which a front door can relay a client to the front door of host `to`, once within a minute. */
export async function issueRelayToken(store: Store, identity: Identity, to: string): Promise<IssuedToken> {
  return await issueToken(store, identity.user, PASSING_MS, { door: to, passing: true, relayed: identity });
}

/**
 * Deletes expired one-time codes, and expired tokens that the fleet made for its own connections and did not delete,
 * for example after a crash. Also deletes revocations of credentials that have expired by now.
 */
export async function sweepTokens(store: Store): Promise<void> {
  for (const record of await store.tokens.list()) {
    const isOurs = record.passing === true || record.role === "revoked";
    if (isOurs && (await isExpired(store, record))) await store.tokens.delete(record.id);
  }
}

/** An entry point's memory of the tokens that clients have shown there. */
export interface Seen {
  uses: TokenUses;
  passing: PassingTokens;
}

/** The user or host that presents the token; null if it is not valid. Notes the use; deletes a relay token. */
export async function verifyToken(store: Store, token: unknown, seen?: Seen): Promise<Identity | HostIdentity | null> {
  const id = tokenIdIn(token);
  if (id === undefined) return null;
  const record = await store.tokens.read(id);
  const good = isSameHash(hashToken(String(token)), record?.sha256 ?? NO_HASH);
  if (!good || record === null || (await isExpired(store, record))) return null;
  const { role, user, door = "", expiresAt, sessionId, lease, relayed, shown } = record;
  if (role === "revoked" || role === "code") return null;
  if (record.passing !== true) seen?.uses.note(id);
  else if (role === undefined && record.door !== store.hosts?.own) return null;
  else if (seen?.passing.admit(record, await store.now()) === false) return null;
  if (relayed !== undefined) return (await store.tokens.delete(id)) ? (relayed as Identity) : null;
  if (role === "host") return { host: user.slice(HOST_PREFIX.length), tokenId: id, door };
  return {
    user,
    scopes: scopesOf(record),
    groups: [],
    tokenId: id,
    expiresAt,
    via: "token",
    sessionId,
    lease,
    shownTokenId: shown,
  };
}

/** Returns a function that recognizes the token when it is presented again. Keeps only a hash of the token. */
export function recognizer(token: string): (shown: unknown) => boolean {
  const hash = hashToken(token);
  return (shown) => typeof shown === "string" && isSameHash(hashToken(shown), hash);
}

export function tokenIdIn(token: unknown): string | undefined {
  return typeof token === "string" ? TOKEN.exec(token)?.[1] : undefined;
}

/** Whether a verified token is still valid: it was not revoked, and has not expired. */
export async function isTokenGood(
  store: Store,
  { tokenId, user }: Pick<Identity, "tokenId" | "user">,
  uses?: TokenUses,
): Promise<boolean> {
  const record = await store.tokens.read(tokenId);
  const isGood =
    record !== null && record.role === undefined && record.user === user && !(await isExpired(store, record));
  if (isGood && record.passing !== true) uses?.note(tokenId, CONNECTED_MS);
  return isGood;
}

/** The tokens issued to one user or to all users, the newest first. Leaves out short-lived tokens for other hosts. */
export async function listTokens(store: Store, user?: string): Promise<TokenView[]> {
  const records = (await store.tokens.list())
    .filter(({ role, passing, user: owner }) => (role ?? passing) === undefined && owner === (user ?? owner))
    .sort((a, b) => compareText(b.createdAt, a.createdAt) || compareText(a.id, b.id));
  const uses = await store.tokens.lastUses(records.map(({ id }) => id));
  const now = await store.now();
  return records.map((record, index) => ({
    id: record.id,
    user: record.user,
    createdAt: record.createdAt,
    expiresAt: record.expiresAt,
    expired: isOver(record, now),
    lastUsedAt: timeIn(uses[index]),
    scopes: scopesOf(record),
    sessionId: record.sessionId ?? null,
    label: record.label ?? null,
  }));
}

type TellHosts = (ends: TokenEnd[]) => Promise<void>;

export interface RotatedToken extends IssuedToken {
  /** The id of the old token. */
  replaces: string;
  /** When the old token expires. Both tokens are valid until then. */
  oldExpiresAt: string | null;
}

/**
 * Issues a new token with the user, the scopes, the session, the label and the lifetime of the old token `id`. Makes
 * the old token expire after `overlapMs` (milliseconds), unless it expires earlier anyway.
 *
 * @throws FleetError `FLEET_NAME_NOT_FOUND` when no token of a user has this id, or when the token has expired.
 */
export async function rotateToken(
  store: Store,
  id: string,
  overlapMs: number,
  tellHosts?: TellHosts,
): Promise<RotatedToken> {
  const record = await store.tokens.read(id);
  if (record === null || record.role !== undefined || record.passing === true || (await isExpired(store, record)))
    throw await noSuchTokens(store, [id]);
  const { user, createdAt, issuedUntil = record.expiresAt } = record;
  const ttlMs = issuedUntil === null ? null : Date.parse(issuedUntil) - Date.parse(createdAt);
  const issued = await issueToken(store, user, ttlMs, kindOf(record));
  const old = await store.tokens.endBy(id, new Date((await store.now()) + overlapMs).toISOString());
  if (old === null) {
    // The old token has just been revoked, so its replacement must not be valid either.
    await store.tokens.delete(issued.id);
    throw await noSuchTokens(store, [id]);
  }
  await tellHosts?.([{ id, at: old.expiresAt, until: issuedUntil }]);
  return { ...issued, replaces: id, oldExpiresAt: old.expiresAt };
}

/** The part of a record that the token which replaces it keeps. */
function kindOf({ scopes, sessionId, label }: TokenRecord): Kind {
  return {
    ...(scopes === undefined ? {} : { scopes }),
    ...(sessionId === undefined ? {} : { sessionId }),
    ...(label === undefined ? {} : { label }),
  };
}

/** @param outcome the results of the call for other tokens */
export async function noSuchTokens(
  store: Store,
  ids: readonly string[],
  outcome: Readonly<Record<string, unknown>> = {},
): Promise<FleetError> {
  const known = (await listTokens(store)).map(({ id }) => id);
  const near = ids.flatMap((id) => nearestOf(id, known, (each) => each)).map((id): Suggestion => `Did you mean ${id}?`);
  return new FleetError("FLEET_NAME_NOT_FOUND", `There is no valid token ${ids.map(quote).join(", ")}.`, {
    suggestions: [...near, "copilotfleet token list"],
    outcome,
  });
}

/**
 * Revokes tokens by their ids, or all tokens of a user. Connections that were made with them end within seconds.
 * Ignores ids of tokens that do not exist.
 *
 * @param tellHosts makes each host remember the revocations in its {@link Store.tokens}, before the records are deleted
 */
export async function revokeTokens(
  store: Store,
  which: { ids: readonly string[] } | { user: string },
  tellHosts?: TellHosts,
) {
  if ("ids" in which) {
    await revokeEach(store, which.ids, tellHosts);
    return [...which.ids];
  }
  const revoked = new Set<string>();
  // List the tokens again, because a token may have been replaced just before it was revoked.
  for (;;) {
    const left = (await idsOf(store, which.user)).filter((id) => !revoked.has(id));
    if (left.length === 0) return [...revoked];
    await revokeEach(store, left, tellHosts);
    for (const id of left) revoked.add(id);
  }
}

/** The ids of a user's tokens and codes, and of tokens with which processes connect to other hosts as the user. */
async function idsOf(store: Store, user: string): Promise<string[]> {
  const isTheirs = ({ role, relayed }: TokenRecord) => role === "code" || (role ?? relayed) === undefined;
  return (await store.tokens.list()).filter((each) => each.user === user && isTheirs(each)).map(({ id }) => id);
}

async function revokeEach(store: Store, ids: readonly string[], tellHosts?: TellHosts): Promise<void> {
  try {
    await tellHosts?.(await Promise.all(ids.map(async (id) => await revocationOf(store, id))));
  } finally {
    for (const id of ids) await (isForeignId(id) ? revokeForeign(store, id) : store.tokens.delete(id));
  }
}

async function revocationOf(store: Store, id: string): Promise<TokenEnd> {
  if (isForeignId(id)) {
    const until = new Date((await store.now()) + LONGEST_LIFE_MS).toISOString();
    return { id: recordId(id), at: null, until };
  }
  // If the record is damaged, nobody knows when the token would expire, so the hosts remember its revocation forever.
  const record = await store.tokens.read(id).catch((error: unknown) => {
    if (!isDamaged(error)) throw error;
    return null;
  });
  return { id, at: null, until: record?.issuedUntil ?? record?.expiresAt ?? null };
}

/** Checks a token id. The error message does not quote a value that may be a whole token. */
export function validateTokenId(value: string): string {
  if (isTokenId(value) || isForeignId(value)) return value;
  if (value.startsWith("cft_")) {
    const id = TOKEN.exec(value)?.[1];
    const message =
      "This is a token and not its id. Revoke it, because others can read it on the command line. The id is the part between the two underscores.";
    const revoke: Suggestion = id === undefined ? "copilotfleet token list" : `copilotfleet token revoke ${id}`;
    throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: [revoke] });
  }
  const message = `${quote(value)} is not the id of a token. An id consists of lower-case letters and digits, or of "jwt:" and the id of a JSON Web Token.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet token list"] });
}

/**
 * Reads the time of a use. Nothing protects these times in Redis, so the text may be anything. Null if it is not a
 * time.
 */
function timeIn(text: string | null | undefined): string | null {
  const time = Date.parse(text ?? "");
  return Number.isNaN(time) ? null : new Date(time).toISOString();
}

/** The scopes of a token. The token of a host has none recorded, and gets `use`. */
function scopesOf({ scopes = ["use"] }: Pick<TokenRecord, "scopes">): Scope[] {
  return SCOPES.filter((scope) => scopes.includes(scope));
}

/** Whether a token has expired, by the store's clock, because the clocks of hosts differ. */
async function isExpired(store: Store, record: TokenRecord): Promise<boolean> {
  return record.expiresAt !== null && isOver(record, await store.now());
}

function isOver({ expiresAt }: TokenRecord, now: number): boolean {
  // A date that cannot be read counts as past.
  return expiresAt !== null && !(Date.parse(expiresAt) > now);
}

/** How long a one-time code is valid, in milliseconds. */
const CODE_MS = 5 * 60_000;
/** How long the token that replaces a code is valid, in milliseconds. */
const SIGNED_IN_MS = 8 * 3_600_000;
/** The label of that token. */
const SIGN_IN = "console sign-in";

type CodeKind = Pick<TokenRecord, "sessionId"> & { scopes: readonly Scope[] };

/** Issues a code with which a browser can sign in to the console as the user, once, at any host. */
export async function issueCode(store: Store, user: string, kind: CodeKind): Promise<IssuedToken> {
  return await issueToken(store, user, CODE_MS, { ...kind, role: "code", passing: true });
}

/** Returns the record of a code, without using the code up. Null if the code is not valid. */
export async function readCode(store: Store, code: unknown): Promise<TokenRecord | null> {
  const id = tokenIdIn(code);
  const record = id === undefined ? null : await store.tokens.read(id);
  if (record === null || record.role !== "code" || !isSameHash(hashToken(String(code)), record.sha256)) return null;
  return (await isExpired(store, record)) ? null : record;
}

/**
 * Exchanges a code for a token with the user, the scopes and the session of the code. Null if the code is not valid, or
 * does not belong to `owner`.
 */
export async function redeemCode(store: Store, code: unknown, owner: string): Promise<IssuedToken | null> {
  const record = await readCode(store, code);
  if (record?.user !== owner) return null;
  // If the code is presented to several hosts at once, only one of them can delete the record, and only that one goes
  // on.
  if (!(await store.tokens.delete(record.id))) return null;
  // Record the end of the code, so that this host refuses the code even if somebody with write access to Redis restores
  // the record.
  await store.tokens.noteEnd({ id: record.id, at: null, until: record.expiresAt });
  return await issueToken(store, record.user, SIGNED_IN_MS, { scopes: [], ...kindOf(record), label: SIGN_IN });
}

/** How long after its creation a passing token (a token for one connection) can be shown, in milliseconds. */
const PASSING_MS = 60_000;

/**
 * Admits each passing token once, even if somebody with write access to Redis restores its record. Refuses a token that
 * is older than this process, because it may have been shown to the process that ran here before.
 */
export class PassingTokens {
  readonly #shownAt = new Map<string, number>();
  readonly #uptimeMs: () => number;

  /** @param uptimeMs how long this process has run, in milliseconds; replaced in tests */
  constructor(uptimeMs = () => process.uptime() * 1_000) {
    this.#uptimeMs = uptimeMs;
  }

  /**
   * Whether the token is admitted. Remembers an admitted token, so that it is refused the next time. @param now the
   * time by the store's clock, which also set `createdAt`; in milliseconds
   */
  admit({ id, createdAt }: Pick<TokenRecord, "id" | "createdAt">, now: number): boolean {
    for (const [known, at] of this.#shownAt) {
      if (now - at <= PASSING_MS) break;
      this.#shownAt.delete(known);
    }
    const ageMs = now - Date.parse(createdAt);
    if (!(ageMs <= Math.min(PASSING_MS, this.#uptimeMs())) || this.#shownAt.has(id)) return false;
    this.#shownAt.set(id, now);
    return true;
  }
}

/** The shortest time between two recorded uses of a token, in milliseconds. */
const EVERY_MS = 60_000;

interface Context {
  tokens: Pick<TokenTable, "used">;
  now(): Promise<number>;
}

/** Records when tokens were last used. Callers do not wait for the write, and ignore its failure. */
export class TokenUses {
  readonly #store: Context;
  readonly #clock: { now(): number };
  readonly #recordedAt = new Map<string, number>();

  /** @param clock replaced in tests */
  constructor(store: Context, clock: { now(): number } = performance) {
    this.#store = store;
    this.#clock = clock;
  }

  /** Records a use. @param everyMs the shortest time between two recorded uses of this token, in milliseconds */
  note(id: string, everyMs = EVERY_MS): void {
    const now = this.#clock.now();
    const before = this.#recordedAt.get(id);
    if (before !== undefined && now - before < everyMs) return;
    remember(this.#recordedAt, id, now);
    const record = async () => await this.#store.tokens.used(id, new Date(await this.#store.now()).toISOString());
    record().catch(() => "the next use is recorded");
  }
}

/**
 * Revokes a credential that the fleet did not make, by its id, such as `jwt:…`. The store remembers the id for as long
 * as such a credential can be valid.
 */
async function revokeForeign(store: Store, tokenId: string): Promise<void> {
  const id = recordId(tokenId);
  if ((await store.tokens.read(id)) !== null) return;
  const now = await store.now();
  const createdAt = new Date(now).toISOString();
  const expiresAt = new Date(now + LONGEST_LIFE_MS).toISOString();
  // Nobody can present this record as a token, because no token has an empty hash.
  await store.tokens.create({ role: "revoked", id, user: "revoked:", sha256: "", createdAt, expiresAt });
}

export async function isRevoked(store: Store, tokenId: string): Promise<boolean> {
  const id = recordId(tokenId);
  return (await store.tokens.isNotedRevoked(id)) || (await store.tokens.read(id)) !== null;
}

/**
 * Whether a text is the id of a credential that the fleet did not make. Such an id begins with the kind of credential.
 */
export function isForeignId(text: string): boolean {
  return /^jwt:[\x21-\x7e]{1,128}$/.test(text);
}

/**
 * The id of the record. It is a digest, because the ids of records consist of letters and digits. It is longer than the
 * id of any token of the fleet, so the two cannot collide.
 */
function recordId(tokenId: string): string {
  return sha256(tokenId);
}
