// For pages that are opened as files: browsers start no workers there, and the search is
// one. A hidden frame runs the same script.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      const page = this.inside.document;
      page.open();
      page.write("<body>");
      page.close();
      this.inside.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((done) => {
        const script = page.createElement("script");
        script.src = url;
        script.onload = done;
        page.body.append(script);
      });
    }
    postMessage(data) {
      const send = () =>
        this.inside.dispatchEvent(new MessageEvent("message", { data }));
      this.ready.then(send);
    }
  };
}
