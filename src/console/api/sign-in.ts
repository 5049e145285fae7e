import { ask, send } from "./client.js";
import { findKey, keepKey, signedOutEverywhere } from "./key.js";
import { Problem } from "./problem.js";
import type { Caller } from "./types.js";

/** Returns the user for whom the one-time code was issued. Does not use the code up. */
export async function ownerOf(code: string): Promise<string> {
  return (await ask<{ user: string }>("POST", "/console/session", { body: { code } })).user;
}

/** Signs in with a token, or with a one-time code that was issued for `user`. */
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

/** The user who is still signed in from an earlier visit in this browser; null if nobody is. */
export async function signedIn(): Promise<Caller | null> {
  if ((await findKey()) === null) return null;
  try {
    return await whoAmI();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return null;
    throw error;
  }
}

/** Returns the one-time code in the address, and removes it from the address and the history. Null if there is none. */
export function takeCode(): string | null {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1] ?? null;
  if (code !== null) history.replaceState(null, "", "/");
  return code;
}
