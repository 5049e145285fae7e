/*
 * The key that decrypts the token in the cookie. No script can read the cookie, so the key alone is worth nothing. The
 * key lives as long as this tab. A new tab asks the other tabs for the key.
 */

const NAME = "copilotfleet.key";
/** How long to wait for the answers of other tabs, in milliseconds. */
const ANSWER_MS = 250;

type Message = { wanted: true } | { key: string } | { signedOut: true };

const channel = new BroadcastChannel("copilotfleet");
const listeners = new Set<() => void>();

channel.addEventListener("message", ({ data }: MessageEvent<Message>) => {
  const key = keyOf();
  if ("wanted" in data && key !== null) channel.postMessage({ key } satisfies Message);
  if ("signedOut" in data) forget();
});

export function keyOf(): string | null {
  return sessionStorage.getItem(NAME);
}

export function keepKey(key: string): void {
  sessionStorage.setItem(NAME, key);
}

/** The key of this tab, or else that of another tab; null if no tab has a key. */
export async function findKey(): Promise<string | null> {
  const own = keyOf();
  if (own !== null) return own;
  const given = await new Promise<string | null>((resolve) => {
    const listen = ({ data }: MessageEvent<Message>) => {
      if ("key" in data) resolve(data.key);
    };
    channel.addEventListener("message", listen);
    channel.postMessage({ wanted: true } satisfies Message);
    setTimeout(() => {
      channel.removeEventListener("message", listen);
      resolve(null);
    }, ANSWER_MS);
  });
  if (given !== null) keepKey(given);
  return given;
}

/** Calls the function when this tab is signed out. @returns a function that removes the listener */
export function onSignedOut(listener: () => void): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** Signs this tab out, because the API no longer accepts the cookie. */
export function signedOut(): void {
  forget();
}

/** Signs all tabs out, because the user has signed out. */
export function signedOutEverywhere(): void {
  channel.postMessage({ signedOut: true } satisfies Message);
  forget();
}

function forget(): void {
  sessionStorage.removeItem(NAME);
  for (const listener of listeners) listener();
}
