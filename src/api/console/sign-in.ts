import type { Context } from "hono";
import * as v from "valibot";
import { FleetError, isFleetError } from "../../errors.js";
import type { Env } from "../app.js";
import { readBody } from "../body.js";
import type { DoorState } from "../door-state.js";
import { readInput } from "../input.js";
import { invalid } from "../problem.js";
import type { Visit } from "../visit.js";
import { type Asking, cookieFor, credentialIn, isOwnPage, LONGEST_TOKEN, removedCookie, seal } from "./credential.js";

type Request = Context<Env>;

const LARGEST_BODY = 20_000;
const WAYS = "a JSON object with a token, with a code, or with a code and its user";
const text = v.string(WAYS);
const body = v.union(
  [
    v.strictObject({ token: text }, WAYS),
    v.strictObject({ code: text }, WAYS),
    v.strictObject({ code: text, user: text }, WAYS),
  ],
  WAYS,
);
type Given = v.InferOutput<typeof body>;

/** Stands in for the user's share of the limits, and counts nothing: before sign-on, the user is not known. */
const UNCOUNTED = { buffers: () => undefined, overBytes: null };

/**
 * Signs a browser in: checks the token as for every other request, and answers with a cookie that contains the
 * encrypted token, and with the key of the cookie.
 *
 * If the body has a one-time code but no user, only returns the code's user, and leaves the code valid. The page then
 * asks whether to sign in as this user. Otherwise, a stranger could send a link that signs people in to the stranger's
 * account, and read what they write there.
 */
export async function signIn(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "POST /console/session";
  const asking = askingOf(c);
  if (!isOwnPage(asking)) throw foreignPage();
  using work = door.begin();
  const given = await readBody(c, LARGEST_BODY, UNCOUNTED);
  const input = readInput({ params: null, query: null, body }, { params: {}, query: c.req.queries(), body: given });
  const credential = input.body as Given;
  const owner = "code" in credential ? await door.fleet.tokens.ownerOf(credential.code) : null;
  if (owner !== null && !("user" in credential)) {
    visit.ended(200);
    return answer(visit, { user: owner });
  }
  const { token, isIssued } = await tokenFor(door, credential);
  const identity = await visit.signOn(`Bearer ${token}`, work);
  work.keep(await door.shares.admitUser(identity.user, { relayed: false, everywhere: false }));
  if (token.length > LONGEST_TOKEN)
    throw invalid(`The token has ${token.length} characters. The console takes at most ${LONGEST_TOKEN}.`);
  const { sealed, key } = seal({ token, isIssued });
  visit.ended(200);
  const cookie = cookieFor(asking, sealed, identity.expiresAt, Date.now());
  return answer(visit, { key }, { "Set-Cookie": cookie });
}

function answer(visit: Visit, body: object, headers: Readonly<Record<string, string>> = {}): Response {
  return new Response(JSON.stringify(body), {
    headers: { ...visit.headers, "Content-Type": "application/json", ...headers },
  });
}

/** Signs a browser out: removes its cookie, and revokes the token if the fleet issued it for a code. */
export async function signOut(door: DoorState, c: Request): Promise<Response> {
  const visit = c.get("visit");
  visit.route = "DELETE /console/session";
  const asking = askingOf(c);
  if (!isOwnPage(asking)) throw foreignPage();
  const credential = credentialIn(asking);
  if (credential?.isIssued === true) {
    using work = door.begin();
    // If the token has expired or was revoked, there is nothing left to revoke, so only remove the cookie.
    const identity = await visit.signOn(`Bearer ${credential.token}`, work).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_TOKEN_REFUSED")) return null;
      throw error;
    });
    if (identity !== null) await door.fleet.tokens.revoke({ ids: [identity.tokenId] }, { ignoreNotFound: true });
  }
  visit.ended(204);
  return new Response(null, { status: 204, headers: { ...visit.headers, "Set-Cookie": removedCookie(asking) } });
}

/**
 * The token that the browser sent, or a new token for its one-time code. For an invalid code, returns a text that the
 * sign-on refuses like an invalid token. Does not accept a token in place of a code: the page takes codes from links,
 * and a link must never contain a token.
 */
async function tokenFor({ fleet }: DoorState, given: Given) {
  if ("token" in given) return { token: given.token.trim(), isIssued: false };
  const issued = "user" in given ? await fleet.tokens.redeem(given.code, given.user) : null;
  return { token: issued?.token ?? `refused:${given.code}`, isIssued: issued !== null };
}

function askingOf({ req, env }: Request): Asking {
  return { header: (name) => req.header(name), isSecure: "encrypted" in env.incoming.socket };
}

function foreignPage(): FleetError {
  const message = "A page of another origin made this request. Only the console may do that.";
  return new FleetError("FLEET_ORIGIN_REFUSED", message, { suggestions: ["Open the console at its own address."] });
}
