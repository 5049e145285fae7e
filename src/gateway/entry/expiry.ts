import { LONGEST_TIMER_MS } from "../../config/values/duration.js";
import type { Identity } from "../../identity/identity.js";
import type { SignOn } from "../../identity/sign-on.js";

/**
 * If a credential has expired by this machine's clock but not by the store's clock, the door checks it again after this
 * time, in milliseconds.
 */
const AGAIN_MS = 1_000;

/** Calls `end` when the credential of an identity expires. Dispose the result when the connection ends. */
export function atExpiry(identity: Identity, signOn: SignOn, end: () => void): Disposable {
  const endMs = identity.expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(identity.expiresAt);
  let timer: NodeJS.Timeout | undefined;
  let isOver = false;
  const look = async () => {
    const isGood = Date.now() < endMs || (await signOn.isStillGood(identity).catch(() => true));
    if (isOver) return;
    if (isGood) wait();
    else end();
  };
  const wait = () => {
    const ms = Math.min(Math.max(endMs - Date.now(), AGAIN_MS), LONGEST_TIMER_MS);
    timer = setTimeout(() => void look(), ms);
    timer.unref();
  };
  if (identity.expiresAt !== null) wait();
  return {
    [Symbol.dispose]: () => {
      isOver = true;
      clearTimeout(timer);
    },
  };
}
