import { ask, send } from "./client.js";
import { findKey, keepKey, signedOutEverywhere } from "./key.js";
import { Problem } from "./problem.js";
import type { Caller } from "./types.js";

/** The user of a one-time code, which stays good. */
export async function ownerOf(code: string): Promise<string> {
  return (await ask<{ user: string }>("POST", "/console/session", { body: { code } })).user;
}

/** Signs in with a token, or with a one-time code of that user. */
export async function signIn(credential: { token: string } | { code: string; user: string }): Promise<Caller> {
  const { key } = await ask<{ key: string }>("POST", "/console/session", { body: credential });
  keepKey(key);
  return await whoAmI();
}

export async function signOut(): Promise<void> {
  try {
    await send("DELETE", "/console/session");
  } finally {
    signedOutEverywhere();
  }
}

export async function whoAmI(): Promise<Caller> {
  return await ask<Caller>("GET", "/v1/me");
}

/** The user of an earlier sign-in in this browser. Null if there is none, or if it is over. */
export async function signedIn(): Promise<Caller | null> {
  if ((await findKey()) === null) return null;
  try {
    return await whoAmI();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return null;
    throw error;
  }
}

/** Takes the one-time code from the address, so that it stays neither there nor in the history. */
export function takeCode(): string | null {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1] ?? null;
  if (code !== null) history.replaceState(null, "", "/");
  return code;
}
