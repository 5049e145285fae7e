import { useCallback, useEffect, useState } from "preact/hooks";
import { onSignedOut, ownerOf, type Problem, problemFrom, signedIn, signIn, takeCode } from "./api/client.js";
import type { Caller } from "./api/types.js";
import { ConfirmCode, SignIn } from "./pages/sign-in.js";
import { Loading } from "./parts/notice.js";
import { Shell } from "./shell.js";

type State =
  | { is: "starting" }
  | { is: "signed out"; problem?: Problem | undefined; wasSignedIn: boolean }
  | { is: "asking"; code: string; user: string }
  | { is: "signed in"; caller: Caller };

/** Signs in with the code in the address, or with the cookie of an earlier sign-in. */
async function start(): Promise<State> {
  const code = takeCode();
  try {
    const caller = await signedIn();
    if (code !== null) {
      const user = await ownerOf(code);
      // Ask first. A stranger may have sent this link to sign the user in to the stranger's account, and would then see
      // what the user writes.
      if (caller !== null && caller.user !== user) return { is: "asking", code, user };
      return { is: "signed in", caller: await signIn({ code, user }) };
    }
    return caller === null ? { is: "signed out", wasSignedIn: false } : { is: "signed in", caller };
  } catch (error) {
    const problem = problemFrom(error);
    return { is: "signed out", problem, wasSignedIn: false };
  }
}

export function App() {
  const [state, setState] = useState<State>({ is: "starting" });
  useEffect(() => {
    void start().then(setState);
    const follow = () => {
      if (location.hash.startsWith("#code=")) void start().then(setState);
    };
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  useEffect(
    () =>
      onSignedOut(() =>
        setState((before) => (before.is === "signed in" ? { is: "signed out", wasSignedIn: true } : before)),
      ),
    [],
  );
  const enter = useCallback((caller: Caller) => setState({ is: "signed in", caller }), []);
  if (state.is === "starting") return <Loading />;
  if (state.is === "asking") {
    return <ConfirmCode code={state.code} user={state.user} close={() => void start().then(setState)} />;
  }
  if (state.is === "signed out") return <SignIn problem={state.problem} isOver={state.wasSignedIn} enter={enter} />;
  return <Shell caller={state.caller} />;
}
